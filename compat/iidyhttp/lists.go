package iidyhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/howdah-db/howdah/checklists"
)

// entry is an item as the original shows it.
type entry struct {
	Item     string `json:"item"`
	Attempts int    `json:"attempts"`
}

func (a *api) getOne(ctx context.Context, t target, r *request) (*answer, error) {
	item, err := a.lists.Get(ctx, t.list, t.item)
	if errors.Is(err, checklists.ErrNoItem) || err == nil && item.State == checklists.StateDone { // kept, but off the list
		return nil, &refusal{http.StatusNotFound, "Not found."}
	}
	if err != nil {
		return nil, err
	}
	var body bytes.Buffer
	if r.json {
		appendJSON(&body, entry{item.Name, item.Attempts})
	} else {
		fmt.Fprintln(&body, item.Attempts)
	}
	return &answer{status: http.StatusOK, body: [][]byte{body.Bytes()}}, nil
}

// maxCount is the most items of a page.
const maxCount = 1_000_000

func (r *request) pageSize() (int, error) {
	text := r.query.Get("count")
	if text == "" {
		return 0, badRequest("Query arg not found: count")
	}
	n, err := strconv.Atoi(text)
	switch {
	case errors.Is(err, strconv.ErrSyntax):
		return 0, badRequest("For query arg count, %s is not a number: %v", text, err)
	case err != nil || n < 0 || n > maxCount:
		return 0, badRequest("For query arg count, %s is not from 0 to %d", text, maxCount)
	}
	return n, nil
}

// getMany answers when it has the whole page, so that one which cannot be read
// is never taken for a short one. As in the original an empty after_id begins at
// the first item.
func (a *api) getMany(ctx context.Context, t target, r *request) (*answer, error) {
	count, err := r.pageSize()
	if err != nil {
		return nil, err
	}
	var after *string
	if id := r.query.Get("after_id"); id != "" {
		after = &id
	}
	page := page{json: r.json}
	for page.n < count {
		n := min(count-page.n, checklists.MaxPage)
		items, err := a.lists.Page(ctx, t.list, after, n)
		if err != nil {
			return nil, err
		}
		for _, item := range items {
			page.add(entry{item.Name, item.Attempts})
		}
		if len(items) < n {
			break
		}
		after = &page.last
	}
	return page.answer(), nil
}

// page gathers the body of a page, of a million items little more than their
// names: in parts, because one that grows is copied, and there twice, each time.
type page struct {
	json  bool
	n     int
	parts [][]byte
	part  bytes.Buffer
	last  string
}

func (p *page) add(e entry) {
	if !p.json {
		fmt.Fprintf(&p.part, "%s %d\n", e.Item, e.Attempts)
	} else {
		if p.n > 0 {
			p.part.WriteByte(',')
		}
		appendJSON(&p.part, e)
		p.part.Truncate(p.part.Len() - 1) // its newline
	}
	if p.part.Len() >= 256<<10 {
		p.parts = append(p.parts, bytes.Clone(p.part.Bytes()))
		p.part.Reset()
	}
	p.n++
	p.last = e.Item
}

func (p *page) answer() *answer {
	body := append(p.parts, p.part.Bytes())
	if p.json {
		body = slices.Concat([][]byte{[]byte(`{"listentries":[`)}, body, [][]byte{[]byte("]}\n")})
	}
	return &answer{status: http.StatusOK, body: body, last: p.last}
}

func (a *api) deleteSome(ctx context.Context, t target, r *request) (*answer, error) {
	return a.some(ctx, t, r, "deleted", a.lists.Delete)
}

func (a *api) incrementSome(ctx context.Context, t target, r *request) (*answer, error) {
	return a.some(ctx, t, r, "incremented", a.lists.Increment)
}

// some does something to the item of the path, or to those of the body.
func (a *api) some(ctx context.Context, t target, r *request, verb string, do func(context.Context, string, ...string) (int64, error)) (*answer, error) {
	items := []string{t.item}
	if t.batch {
		var err error
		if items, err = r.all(); err != nil {
			return nil, err
		}
	}
	n, err := do(ctx, t.list, items...)
	if err != nil {
		return nil, err
	}
	return r.count(http.StatusOK, verb, n), nil
}
