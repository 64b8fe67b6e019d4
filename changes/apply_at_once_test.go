package changes_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
)

// Several who want the same capture at once, as programs that begin with it do, all get it.
func TestApplyAtOnce(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY)`)
	for _, payload := range []changes.Payload{changes.PayloadRow, changes.PayloadFull} { // made, then replaced
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if _, err := l.Apply(t.Context(), []changes.Capture{{Table: "public.a", Payload: payload}}, false); err != nil {
					t.Errorf("Apply: %v", err)
				}
			})
		}
		all.Wait()
		if steps, err := l.Plan(t.Context(), []changes.Capture{{Table: "public.a", Payload: payload}}, true); err != nil || len(steps) > 0 {
			t.Errorf("after that there is to do %+v, %v", steps, err)
		}
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := l.Release(t.Context(), "public.a"); err != nil && !errors.Is(err, fault.NotFound) { // another was first
				t.Errorf("Release: %v", err)
			}
		})
	}
	all.Wait()
	if got := triggers(t, pool); got != "" {
		t.Errorf("after the release there are %s", got)
	}
}
