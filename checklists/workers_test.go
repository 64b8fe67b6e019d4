package checklists_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/howdah-db/howdah/checklists"
)

// Sixteen workers, each item with one at a time and done once, while others
// count, kill and extend.
func TestManyWorkersShareAList(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	const total = 10_000
	src := func(yield func(checklists.Item, error) bool) {
		for i := range total {
			if !yield(checklists.Item{Name: fmt.Sprintf("item-%06d", i)}, nil) {
				return
			}
		}
	}
	if _, err := s.Import(ctx, "l", src, checklists.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	s = checklists.New(wide(t, pool), checklists.Config{Table: tableOf(t, pool)})
	var mu sync.Mutex
	held, done := map[string]string{}, map[string]int{}
	var workers errgroup.Group
	for w := range 16 {
		workers.Go(func() error {
			name := fmt.Sprint(w)
			for round := 0; ; round++ {
				c, err := s.Claim(ctx, "l", name, 50, time.Hour)
				if err != nil || len(c.Items) == 0 {
					return err
				}
				mu.Lock()
				for _, item := range c.Items {
					if other, ok := held[item.Name]; ok {
						err = fmt.Errorf("%s is with %s and %s", item.Name, other, name)
					}
					held[item.Name] = name
				}
				mu.Unlock()
				if err != nil {
					return err
				}
				if _, err := s.Extend(ctx, c.Lease, 2*time.Hour); err != nil {
					return err
				}
				give := c.Items[:len(c.Items)/2]
				if round%3 != 0 {
					give = nil
				}
				mu.Lock() // from the moment that it is given back another may have it
				back := []string{}
				for _, item := range give {
					back = append(back, item.Name)
					delete(held, item.Name)
				}
				mu.Unlock()
				if len(back) > 0 {
					if _, err := s.Release(ctx, c.Lease, back...); err != nil {
						return err
					}
				}
				mine := claimed(c)[len(give):]
				if _, err := s.Done(ctx, c.Lease, mine...); err != nil {
					return err
				}
				mu.Lock()
				for _, item := range mine {
					done[item]++
				}
				mu.Unlock()
			}
		})
	}
	if err := workers.Wait(); err != nil {
		t.Fatal(err)
	}
	for item, n := range done {
		if n != 1 {
			t.Errorf("%s was done %d times", item, n)
		}
	}
	// Workers that met others' locks may have ended early; nothing is lost.
	if got := progress(t, s, "l"); got.Done != int64(len(done)) || got.Done+got.Left != total || got.Leased != 0 {
		t.Errorf("%d done by the workers, counted %+v", len(done), got)
	}
	mustNotDrift(t, pool)
}

func tableOf(t *testing.T, pool *pgxpool.Pool) pgx.Identifier {
	t.Helper()
	var schema string
	if err := pool.QueryRow(t.Context(), `SELECT current_schema()`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	return pgx.Identifier{schema, "lists"}
}

func TestPausedAndLimitedLists(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, pool := newStore(t)
	if _, err := s.Settings(ctx, "l"); !errors.Is(err, checklists.ErrNoList) {
		t.Errorf("Settings: %v, want ErrNoList", err)
	}
	for i := range 40 {
		insert(t, s, "l", fmt.Sprint(i))
	}
	if got, err := s.Settings(ctx, "l"); got != checklists.DefaultSettings || err != nil {
		t.Errorf("Settings = %+v, %v", got, err)
	}
	if err := s.Pause(ctx, "l", true); err != nil {
		t.Fatal(err)
	}
	if c := claim(t, s, "l", 5); len(c.Items) != 0 || !c.Paused || !progress(t, s, "l").Paused {
		t.Errorf("paused: %+v", c)
	}
	set := checklists.DefaultSettings
	set.MaxLeased = 7
	if err := s.Set(ctx, "l", set); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Settings(ctx, "l"); got != set || err != nil {
		t.Errorf("Settings = %+v, %v, want %+v", got, err, set)
	}
	var leased sync.Map
	var group errgroup.Group
	for range 8 {
		group.Go(func() error {
			c, err := s.Claim(ctx, "l", "w", 3, time.Minute)
			for _, item := range c.Items {
				leased.Store(item.Name, c.Lease)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range leased.Range {
		n++
	}
	if n != 7 {
		t.Errorf("%d leased, want 7", n)
	}
	if c := claim(t, s, "l", 1); len(c.Items) != 0 || !c.Limited || c.Paused {
		t.Errorf("at the limit: %+v", c)
	}
	set.MaxLeased, set.Rate = 0, 2
	if err := s.Set(ctx, "l", set); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `UPDATE howdah.checklist SET filled = clock_timestamp() - interval '1 hour' WHERE relation = 'lists'::regclass`); err != nil {
		t.Fatal(err)
	}
	if c := claim(t, s, "l", 10); len(c.Items) != 2 || !c.Limited { // a second's worth, however long ago
		t.Errorf("at 2 a second: %q", claimed(c))
	}
	if err := s.Set(ctx, "l", checklists.DefaultSettings); err != nil {
		t.Fatal(err)
	}
	if c := claim(t, s, "l", 100); len(c.Items) != 31 || c.Limited {
		t.Errorf("without limits: %d", len(c.Items))
	}
}
