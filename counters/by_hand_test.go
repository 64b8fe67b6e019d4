package counters_test

import (
	"errors"
	"testing"
	"time"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
)

// In a transaction that an SQL statement began, what is one statement takes part, and so
// does what only reads, as Export. What needs a transaction of its own is refused before
// anything is done: its COMMIT would be the caller's.
func TestAfterABeginByHand(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	made, pool := newStriped(t, counters.Config{Granularities: []counters.Granularity{"1h", "1d"}, System: counters.Off, Striped: []string{"hot"}, Retention: counters.Retention{"1h": 24 * time.Hour}})
	for _, name := range []string{"k", "hot"} {
		if err := made.Track(ctx, name, at, counters.Values{"n": 1}); err != nil {
			t.Fatal(err)
		}
	}
	before := checksum(t, pool, "trifle_stats")
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	s := counters.New(conn.Conn(), counters.Config{})
	if _, err := conn.Exec(ctx, `BEGIN`); err != nil {
		t.Fatal(err)
	}
	if err := s.Track(ctx, "k", at, counters.Values{"n": 1}); err != nil {
		t.Error(err)
	}
	day := at.Truncate(24 * time.Hour)
	for what, call := range map[string]func() error{
		"Apply": func() error {
			_, err := s.Apply(ctx, counters.Event{ID: "i", Key: "k", At: at, Values: counters.Values{"n": 1}})
			return err
		},
		"ApplyAll": func() error {
			_, err := s.ApplyAll(ctx, sequenceOf([]counters.Event{{Key: "k", At: at}}, nil), counters.ApplyOptions{})
			return err
		},
		"Delete":  func() error { _, err := s.Delete(ctx, "k", nil, time.Time{}, time.Time{}); return err },
		"Prune":   func() error { _, err := s.Prune(ctx, time.Now()); return err },
		"Import":  func() error { _, err := s.Import(ctx, s.Export(ctx, "")); return err },
		"Rename":  func() error { _, err := s.Rename(ctx, "k", "l"); return err },
		"Rebuild": func() error { _, err := s.Rebuild(ctx, "k", "1d", at, at); return err },
		"Replace": func() error {
			_, err := s.Replace(ctx, "k", day, day.AddDate(0, 0, 1), sequenceOf(nil, nil))
			return err
		},
		"Verify": func() error {
			for _, err := range s.Verify(ctx, "k", "1d", "1h", at, at) {
				return err
			}
			return nil
		},
	} {
		if err := call(); !errors.Is(err, pg.ErrBegun) {
			t.Errorf("%s: %v, want ErrBegun", what, err)
		}
	}
	exported := 0
	for _, err := range s.Export(ctx, "") { // which folds nothing then
		if exported++; err != nil {
			t.Errorf("Export: %v", err)
		}
	}
	if exported != 4 {
		t.Errorf("%d rows exported, want 4", exported)
	}
	if tag, err := conn.Exec(ctx, `ROLLBACK`); err != nil || tag.String() != "ROLLBACK" || checksum(t, pool, "trifle_stats") != before {
		t.Errorf("something was committed: %v, %v", tag, err)
	}
}
