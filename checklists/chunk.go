package checklists

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// chunk is what an import puts on a list in one transaction.
type chunk struct {
	items []newItem // each name once, in the order of the bytes
	more  []Item    // those of items that are more than their name
	taken int       // items of the source, none at its end

	id       string   // "": without a bookmark
	from, to bookmark // from where to where of the source it goes
}

// newItem is an item of a chunk. It is small, because the chunk is sorted.
type newItem struct {
	name string
	n    int32 // the n-th of the chunk, from 0, in the order given
	more int32 // its place in chunk.more, from 1; 0: it has none
}

// item returns the i-th item of a chunk, with when it is due: a microsecond after
// the one before it in the source, as in Insert, and in the past for all of the
// largest chunk, or when its source says.
func (c *chunk) item(i newItem, now time.Time) (item Item) {
	if i.more > 0 {
		item = c.more[i.more-1]
	}
	if item.Due.IsZero() {
		item.Due = i.due(now)
	}
	return item
}

func (i newItem) due(now time.Time) time.Time {
	return now.Add((time.Duration(i.n) - chunkItems) * time.Microsecond).Truncate(time.Millisecond)
}

// chunkReader takes chunks from a source.
type chunkReader struct {
	list    string
	next    func() (Item, error, bool)
	size    int
	skipBad func(error) // nil: the first bad item is the end
	id      string
	digest  hash.Hash // of the names so far; nil without an id

	chunk chunk // used again for each
	item  Item  // the last one taken
	seen  int   // items so far, bad ones too
	taken int   // good ones
	bad   int64
}

// badItem is the error of one item of a source: others may follow it.
type badItem struct{ error }

// Unwrap returns what is bad.
func (b badItem) Unwrap() error { return b.error }

// take reads the next item that can be stored; ok is false at the end.
func (r *chunkReader) take() (ok bool, err error) {
	for {
		if r.item, err, ok = r.next(); !ok {
			return false, nil
		}
		r.seen++
		if r.item.Payload != nil && !hasPayload(r.item) {
			r.item.Payload = nil
		}
		if err != nil {
			err = pg.Foreign(err)
		} else if checkItem("item", r.list, &r.item) != nil {
			err = badItem{checkItem("item "+thousands(r.seen), r.list, &r.item)}
		}
		switch {
		case err == nil:
			if r.taken++; r.digest != nil {
				r.digest.Write([]byte(r.item.Name + "\x00"))
			}
			return true, nil
		case r.skipBad == nil || !errors.As(err, new(badItem)):
			return false, err
		}
		r.bad++
		r.skipBad(err)
	}
}

// skip passes over the items that an earlier import has committed, or returns
// ErrChanged where they are others than those.
func (r *chunkReader) skip(ctx context.Context, to bookmark) error {
	for r.taken < to.items {
		ok, err := r.take()
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("the source ends after item %s, and an earlier import came to item %s; %w", thousands(r.taken), thousands(to.items), ErrChanged)
		}
		if r.taken%r.size == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if to.items > 0 && !bytes.Equal(r.bookmark().digest, to.digest) {
		return fmt.Errorf("the source changed before item %s; %w", thousands(to.items+1), ErrChanged)
	}
	return nil
}

func (r *chunkReader) bookmark() (b bookmark) {
	if r.digest != nil {
		b = bookmark{r.taken, r.digest.Sum(nil)}
	}
	return b
}

// read returns the next chunk. Each name is there once, in the order of the bytes:
// concurrent imports wait for each other in one direction only.
func (r *chunkReader) read(ctx context.Context) (*chunk, error) {
	c := &r.chunk
	*c = chunk{items: c.items[:0], more: c.more[:0], id: r.id, from: r.bookmark()}
	clear(c.more[:cap(c.more)]) // payloads of the last chunk
	for bytes := 0; len(c.items) < r.size && bytes < chunkBytes; {
		ok, err := r.take()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		item := newItem{name: r.item.Name, n: int32(len(c.items))}
		if r.item.State == StateLeased {
			r.item.Due = time.Time{} // the end of a lease that the copy has not
		}
		if !r.item.bare() {
			c.more = append(c.more, Item{Payload: r.item.Payload, Priority: r.item.Priority, Due: r.item.Due})
			item.more = int32(len(c.more))
		}
		c.items = append(c.items, item)
		bytes += len(item.name) + len(r.item.Payload)
	}
	c.taken, c.to = len(c.items), r.bookmark()
	slices.SortFunc(c.items, func(a, b newItem) int { return cmp.Or(strings.Compare(a.name, b.name), int(a.n-b.n)) })
	c.items = slices.CompactFunc(c.items, func(a, b newItem) bool { return a.name == b.name })
	return c, ctx.Err()
}
