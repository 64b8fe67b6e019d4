package counters

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ErrSource reports that a source of [Store.ApplyAll] is not the one that its name had
// before, or that it is being applied elsewhere.
var ErrSource = fmt.Errorf("another source than before: %w", fault.Conflict)

// ApplyOptions are settings of [Store.ApplyAll]; the zero one is right for a source
// that is applied once.
type ApplyOptions struct {
	// Once names the source, so that what was applied of it is passed over when it is
	// applied again, within 7 days: all of it, or up to where it was interrupted, or
	// ended then. A name has one source, which may only grow.
	Once string
	// Refused is told of every event that is left out, and why.
	Refused func(error)
}

// Applied is what became of the events of a source.
type Applied struct {
	Applied    int64 `json:"applied"`
	Duplicates int64 `json:"duplicates"` // applied before: by the name of their source, or their ID
	Refused    int64 `json:"refused"`    // cannot be applied
}

// ApplyAll applies events as they come, however many, in units of up to 1,000, or what
// came within a second: each is a transaction. An event that [Store.Apply] would refuse is
// left out, and so is an error of events that is Invalid; any other error ends it. Of
// events that share an ID the first is applied; those that ask for something else are left
// out ([ErrReused]). What was applied before an error stays, and is told with it. In a
// transaction of the caller's each unit locks its rows anew, so that PostgreSQL may end it
// with deadlock_detected (40P01): the caller repeats that transaction.
//
// It returns [ErrSource] where the source begins otherwise than the one that had its
// name before.
func (s *Store) ApplyAll(ctx context.Context, events iter.Seq2[Event, error], opt ApplyOptions) (Applied, error) {
	a := applier{Store: s, opt: opt}
	err := a.run(ctx, events)
	return a.done, pg.Wrap("counters: apply all", err)
}

const (
	unitEvents = 1000
	unitText   = 4 << 20     // bytes of names and texts
	unitAge    = time.Second // a source may be slow
	onceID     = "\x1fonce "
)

// applier is an ApplyAll under way.
type applier struct {
	*Store
	opt   ApplyOptions
	table *table
	done  Applied
	mark  mark // where the source was left, then how far it is applied
	unit  []pending
}

// pending is an event of the unit that is being gathered.
type pending struct {
	prepared
	name string // in an error
	mark mark   // of the source up to here
}

// mark is a place in a source: how many events are before it, and which.
type mark struct {
	n   int64
	sum [sha256.Size]byte
}

// bytes is the mark as it is kept: nil before the first event.
func (m mark) bytes() []byte {
	if m.n == 0 {
		return nil
	}
	return append(binary.BigEndian.AppendUint64(nil, uint64(m.n)), m.sum[:]...)
}

func (a *applier) run(ctx context.Context, events iter.Seq2[Event, error]) (err error) {
	if a.table, err = a.Store.table(ctx); err != nil {
		return err
	}
	if err := pg.CheckText("once", a.opt.Once); err != nil {
		return err
	}
	if n := len(onceID + a.opt.Once); n > maxID {
		return pg.Refuse("once", "%d bytes; at most %d", n-len(onceID), maxID-len(onceID))
	}
	if err := a.find(ctx); err != nil {
		return err
	}
	known := a.mark.n
	var here mark
	var text int
	var begun time.Time
	digest := sha256.New()
	for e, broken := range events {
		if broken != nil && !errors.Is(broken, fault.Invalid) {
			if err := a.commit(ctx); err != nil {
				return err
			}
			return broken
		}
		here.n++
		p := pending{name: "event " + strconv.FormatInt(here.n, 10)}
		if e.line > 0 {
			p.name = "line " + strconv.FormatInt(e.line, 10)
		}
		if broken != nil {
			err = broken
		} else if p.write, err = a.table.writes(e); err != nil {
			err = fmt.Errorf("%s: %w", p.name, err)
		} else if e.ID != "" {
			e.Values = nil
			p.Event = e
			one := []prepared{p.prepared}
			hash(one)
			p.prepared = one[0]
		}
		if a.opt.Once != "" {
			p.write.sum(digest, err == nil)
			digest.Sum(here.sum[:0])
		}
		switch p.mark = here; {
		case err != nil:
			a.refuse(err)
		case here.n <= known:
			a.done.Duplicates++
		default:
			a.unit = append(a.unit, p)
			text += p.write.text()
		}
		if here.n == known && here != a.mark {
			return a.another("its first %d events are not those that were applied", known)
		}
		if len(a.unit) == 1 {
			begun = time.Now()
		}
		if len(a.unit) == unitEvents || text > unitText || time.Since(begun) > unitAge {
			if err := a.commit(ctx); err != nil {
				return err
			}
			text = 0
		}
	}
	if here.n < known {
		return a.another("it has %d events, and %d were applied", here.n, known)
	}
	return a.commit(ctx)
}

func (a *applier) refuse(err error) {
	a.done.Refused++
	if a.opt.Refused != nil {
		a.opt.Refused(err)
	}
}

func (a *applier) another(format string, args ...any) error {
	return fmt.Errorf("%w: %q: %s; give it a name of its own", ErrSource, a.opt.Once, fmt.Sprintf(format, args...))
}

// find reads where the source was left.
func (a *applier) find(ctx context.Context) error {
	if a.opt.Once == "" {
		return nil
	}
	var kept []byte
	err := pg.Retry(ctx, a.db, func() error {
		return a.db.QueryRow(ctx, `
			SELECT hash
			FROM howdah.counter_events
			WHERE tbl = $1 AND id = $2 AND at >= clock_timestamp() - interval '7 days'`, a.table.name, onceID+a.opt.Once).Scan(&kept)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil && len(kept) == 8+sha256.Size {
		a.mark.n = int64(binary.BigEndian.Uint64(kept))
		copy(a.mark.sum[:], kept[8:])
	}
	return a.told(err)
}

// commit applies the unit.
func (a *applier) commit(ctx context.Context) (err error) {
	if a.table, err = a.Store.still(ctx, a.table); err != nil {
		return err
	}
	err = a.apply(ctx, a.unit)
	a.unit = a.unit[:0]
	return err
}

// apply applies a part of the unit in a transaction, and leaves out what meets no
// number in its row, which is found by halves.
func (a *applier) apply(ctx context.Context, unit []pending) error {
	if len(unit) == 0 {
		return nil
	}
	last := unit[len(unit)-1]
	events := make([]prepared, len(unit))
	for i, p := range unit {
		events[i] = p.prepared
	}
	n, other, err := a.transact(ctx, events, last.mark)
	switch {
	case err == nil:
		for _, i := range slices.Sorted(maps.Keys(other)) {
			a.refuse(fmt.Errorf("%s: %w", unit[i].name, other[i]))
		}
		a.done.Applied += int64(n)
		a.done.Duplicates += int64(len(unit) - n - len(other))
		a.mark = last.mark
		return nil
	case !errors.Is(err, ErrNotNumber):
		return err
	case len(unit) == 1:
		a.refuse(fmt.Errorf("%s: %w", last.name, err))
		return nil // the mark of what follows is beyond it
	}
	half := len(unit) / 2
	if err := a.apply(ctx, unit[:half]); err != nil {
		return err
	}
	return a.apply(ctx, unit[half:])
}

// transact applies events and moves the mark of the source, if it has one. Those whose
// ID is that of another are left out, and told.
func (a *applier) transact(ctx context.Context, events []prepared, to mark) (applied int, other map[int]error, err error) {
	var all fold
	err = pg.Retry(ctx, a.db, func() error {
		return pg.BeginFunc(ctx, a.db, func(tx pgx.Tx) (err error) {
			if a.opt.Once != "" {
				if err := a.move(ctx, tx, to); err != nil {
					return err
				}
			}
			other = map[int]error{}
			first := map[string]bool{} // of each ID that this transaction keeps, met
			applied, err = a.applyIn(ctx, tx, a.table, events, &all, func(known ids, i int) (bool, error) {
				e := events[i].Event
				seen, err := known.seen(e)
				if e.ID != "" && !seen {
					if first[e.ID] {
						seen, err = true, reused(e, known.fresh[e.ID])
					}
					first[e.ID] = true
				}
				if err != nil {
					other[i] = err
				}
				return seen, nil
			})
			return err
		})
	})
	return applied, other, a.explain(ctx, a.table, &all, pg.Written(a.db, a.told(err)))
}

// move keeps how far the source is applied, unless another has moved that meanwhile.
func (a *applier) move(ctx context.Context, tx pgx.Tx, to mark) error {
	moved, err := tx.Exec(ctx, `
		INSERT INTO howdah.counter_events AS e (tbl, id, hash)
		VALUES ($1, $2, $3)
		ON CONFLICT (tbl, id) DO UPDATE
		SET at = EXCLUDED.at, hash = EXCLUDED.hash
		WHERE e.hash = $4 OR e.at < EXCLUDED.at - interval '7 days'`, a.table.name, onceID+a.opt.Once, to.bytes(), a.mark.bytes())
	if err == nil && moved.RowsAffected() == 0 {
		return fmt.Errorf("%w: %q is being applied elsewhere; again when that has ended", ErrSource, a.opt.Once)
	}
	return err
}

// sum adds a write to the digest of a source; one that is refused is but that.
func (w write) sum(digest io.Writer, good bool) {
	var b bytes.Buffer
	for _, id := range w.rows {
		fmt.Fprintf(&b, "%q %q %d ", id.key, id.granularity, id.at)
	}
	w.values(&b)
	if !good {
		b.Reset()
	}
	fmt.Fprintf(&b, "%t %q\n", good, w.eventID)
	digest.Write(b.Bytes())
}

// values writes all fields of w, as a digest is of them.
func (w write) values(b *bytes.Buffer) {
	for _, f := range w.fields {
		fmt.Fprintf(b, "%q %s ", f.path, f.op)
		text, _ := appendJSON(b.AvailableBuffer(), f.value(), 0) // pack saw to it that it can
		b.Write(append(text, ' '))
	}
}

// text is how many bytes of names and texts a write has.
func (w write) text() (n int) {
	for _, f := range w.fields {
		n += len(f.path) + textOf(f.other)
	}
	return n
}
