package checklists_test

import (
	"errors"
	"fmt"
	"iter"
	"testing"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// A server that goes away in the middle of an answer is an error: what came
// before it is never taken for the whole.
func TestServerGoneInTheMiddle(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := pgtest.Database(t)
	proxy := pgtest.NewProxy(t, url)
	pool := pgtest.Pool(t, proxy.URL())
	s := checklists.New(pool, checklists.Config{})
	up(t, pool, s)
	const n = 30_000
	items := make([]string, n)
	for i := range items {
		items[i] = fmt.Sprintf("item %07d of a list", i)
	}
	insert(t, s, "l", items...)

	for name, read := range map[string]func() (int, error){
		"Page": func() (int, error) {
			page, err := s.Page(ctx, "l", nil, checklists.MaxPage)
			return len(page), err
		},
		"All":  func() (int, error) { return count(s.All(ctx, "l")) },
		"Find": func() (int, error) { return count(s.Find(ctx, "l", checklists.Query{})) },
	} {
		for _, arm := range []func(){
			func() { proxy.CutOnAnswer([]byte("item 0000")) },
			func() { proxy.CutOnAnswer([]byte("item 0009")) },
			func() { proxy.CutOn([]byte("l")) }, // with the statement
		} {
			whole, err := read()
			if err != nil || whole == 0 {
				t.Fatalf("%s = %d, %v", name, whole, err)
			}
			arm()
			if got, err := read(); !errors.Is(err, fault.Unavailable) {
				t.Errorf("%s: %d of %d, %v, want Unavailable", name, got, whole, err)
			}
		}
	}
}

func count(items iter.Seq2[checklists.Item, error]) (n int, err error) {
	for _, err := range items {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
