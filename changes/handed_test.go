package changes_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
)

// The list that a handler is handed is its own: what it does with it, in good order or
// before an error, changes nothing of what it is handed next.
func TestC3HandlerOwnsItsList(t *testing.T) {
	t.Parallel()
	for name, does := range map[string]func(cs []changes.Change){
		"append": func(cs []changes.Change) { _ = append(cs, changes.Change{}, changes.Change{}) },
		"filter": func(cs []changes.Change) { clear(cs) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, l, pool := consumed(t)
			for i := range 6 {
				exec(t, pool, `INSERT INTO a VALUES ($1, 0)`, i)
			}
			var failed sync.Once
			start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Batch: 4}, func(c *changes.Consumer) {
				c.Hurry()
				c.Handle("*", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) (err error) {
					if err := effect("c")(ctx, tx, cs); err != nil {
						return err
					}
					does(cs)
					failed.Do(func() { err = errors.New("just once") })
					return err
				})
			})
			handled(t, l, "c")
			if diff := cmp.Diff(positions(t, l, changes.Filter{}), effectsOf(t, pool, "c")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A change that was parked comes again with the bytes that it came with: receivers
// choose a partition by those of the key, and know a repeat by them.
func TestC2ParkedChangeComesAgainAsItWas(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `CREATE TABLE words (word text PRIMARY KEY, more jsonb)`)
	capture(t, l, changes.Capture{Table: "public.words"})
	exec(t, pool, `BEGIN;
		SELECT set_config('howdah.meta', '"<&>"', true);
		INSERT INTO words VALUES ('a<b&c>d' || chr(8232) || '\"', '{"b": "<i>", "a": [1.50, "ä\u2029"]}');
		COMMIT`)
	var mu sync.Mutex
	var came []changes.Change
	startPatient(t, url, changes.ConsumerConfig{Name: "c"}, func(c changes.Change) error {
		mu.Lock()
		defer mu.Unlock()
		if came = append(came, c); len(came) < 6 { // four times in place
			return errors.New("not yet")
		}
		return nil
	})
	eventually(t, "it was parked and came again", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(came) == 6
	})
	eventually(t, "that is committed", func() bool { return len(parked(t, l, "c")) == 0 }) // Wait would say that it is parked
	handled(t, l, "c")
	for i, c := range came[1:] {
		if diff := cmp.Diff(came[0], c); diff != "" {
			t.Errorf("time %d: %s", i+2, diff)
		}
	}
}
