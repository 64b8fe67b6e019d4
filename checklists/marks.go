package checklists

import (
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/howdah-db/howdah/pg"
)

// marks remember, for each list and priority, what the last item handed out was
// due, so that the next claim begins there: the index entries before it are of
// items that have gone, and stay as long as somebody holds an old snapshot. They
// are a guess: what is put below them is found by the claims that go without.
type marks struct {
	mu    sync.Mutex
	lists map[string]*mark
}

type mark struct {
	low  [11]pgtype.Timestamptz // by priority, from -5
	next time.Time              // then a claim goes without
}

// maxMarks bounds the memory; a list that was forgotten begins at its start.
const maxMarks = 1024

var noMarks = func() (low [11]pgtype.Timestamptz) {
	for i := range low {
		low[i] = pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	}
	return low
}()

// lowMarks returns where a claim begins. A store in a transaction neither reads
// nor keeps marks: it may roll back.
func (s *Store) lowMarks(list string) (low []pgtype.Timestamptz, marked bool) {
	if pg.Begun(s.db) {
		return noMarks[:], false
	}
	s.marks.mu.Lock()
	defer s.marks.mu.Unlock()
	m := s.marks.lists[list]
	if m == nil || time.Now().After(m.next) {
		return noMarks[:], false
	}
	copied := m.low
	return copied[:], true
}

// keepMarks remembers the last items of a claim; whole is one that went without
// marks and took so long.
func (s *Store) keepMarks(list string, last map[int]pgtype.Timestamptz, whole bool, took time.Duration) {
	if pg.Begun(s.db) {
		return
	}
	s.marks.mu.Lock()
	defer s.marks.mu.Unlock()
	m := s.marks.lists[list]
	if m == nil {
		if len(last) == 0 {
			return
		}
		for other := range s.marks.lists {
			if len(s.marks.lists) < maxMarks {
				break
			}
			delete(s.marks.lists, other)
		}
		m = &mark{low: noMarks}
		s.marks.lists[list] = m
	}
	for priority, due := range last {
		m.low[priority+5] = due
	}
	if whole {
		m.next = time.Now().Add(max(time.Second, 20*took))
	}
}

// forgetMarks lets the next claim of list begin at its start: items have come to
// lie below.
func (s *Store) forgetMarks(list string) {
	s.marks.mu.Lock()
	defer s.marks.mu.Unlock()
	delete(s.marks.lists, list)
}
