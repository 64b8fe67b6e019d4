package changes

import (
	"cmp"
	"math"
	"strconv"
	"strings"

	"github.com/howdah-db/howdah/pg"
)

// Position is a place in the feed: after one change, or after a whole commit. It
// is written "1042.88213" or "1042". The zero Position is the start of a feed
// from which nothing has been removed. Positions are comparable with ==.
type Position struct {
	Commit int64 // number of the commit
	ID     int64 // of the change in it, or 0: after all of the commit
}

// ParsePosition reads what String writes; nothing else: an Invalid error.
func ParsePosition(s string) (Position, error) {
	commit, id, inside := strings.Cut(s, ".")
	n, ok := number(commit, 0)
	if !ok {
		return Position{}, pg.Refuse("position", `%q; want one such as "1042.88213" or "1042"`, s)
	}
	p := Position{Commit: n}
	if inside {
		if p.ID, ok = number(id, 1); !ok {
			return Position{}, pg.Refuse("position", `%q; want one such as "1042.88213" or "1042"`, s)
		}
	}
	return p, nil
}

// number reads a decimal in its shortest form.
func number(s string, least int64) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= least && strconv.FormatInt(n, 10) == s
}

// String returns "1042.88213", or "1042" for after all of a commit.
func (p Position) String() string {
	if p.ID == 0 {
		return strconv.FormatInt(p.Commit, 10)
	}
	return strconv.FormatInt(p.Commit, 10) + "." + strconv.FormatInt(p.ID, 10)
}

// Compare returns -1, 0 or 1: which of p and q comes first.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Commit, q.Commit), cmp.Compare(p.within(), q.within()))
}

// within is the ID to go on after, in the position's own commit.
func (p Position) within() int64 {
	if p.ID == 0 {
		return math.MaxInt64
	}
	return p.ID
}

// MarshalText implements encoding.TextMarshaler, so that JSON has the string.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Position) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePosition(string(text))
	return err
}
