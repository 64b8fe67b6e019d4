package checklists

import (
	"context"
	"iter"

	"github.com/howdah-db/howdah/pg"
)

// Export returns the items of list in order, those in a state where it is not "":
// to be passed on, with [WriteItems], and read again, with [ReadItems]. Like
// [Store.All] it reads a page at a time, so that nobody waits for whom it is passed
// on to; what is changed meanwhile may or may not be seen. An error ends it. Where
// the table has no states, only "" is not ErrPlain.
func (s *Store) Export(ctx context.Context, list string, state State) iter.Seq2[Item, error] {
	const op = "checklists: export"
	if state == "" {
		return s.all(ctx, op, list)
	}
	return func(yield func(Item, error) bool) {
		const page = 1000
		q := Query{State: state, Limit: page}
		items := make([]Item, 0, page)
		for {
			items = items[:0]
			err := s.find(ctx, list, q, func(item Item, _ error) bool {
				items = append(items, item)
				return true
			})
			if err != nil {
				yield(Item{}, pg.Wrap(op, s.told(err)))
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if len(items) < page {
				return
			}
			last := items[page-1].Name
			q.After = &last
		}
	}
}
