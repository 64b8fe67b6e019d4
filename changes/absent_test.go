package changes_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// absent fails the test unless err says that something is not there.
func absent(t *testing.T, what string, err error, says string) {
	t.Helper()
	if !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, want NotFound with %q", what, err, says)
	}
}

// Who names a table or a change that is not there has written it wrongly, and is told.
func TestWhatIsNotThere(t *testing.T) {
	t.Parallel()
	_, l, pool := consumed(t)
	exec(t, pool, `CREATE TABLE plain (id int PRIMARY KEY)`)
	for _, table := range []string{"public.nosuch", "public.plain", "public.*", "a"} {
		_, err := l.Release(t.Context(), table)
		absent(t, table, err, "is not captured")
	}
	saved(t, l, changes.ConsumerConfig{Name: "c"}, "*")
	for name, do := range map[string]func(context.Context, string, ...changes.Position) (int64, error){"Skip": l.Skip, "Retry": l.Retry} {
		_, err := do(t.Context(), "c", changes.Position{Commit: 77, ID: 7}, changes.Position{Commit: 78})
		absent(t, name, err, "howdah changes parked c")
		for _, none := range [][]changes.Position{nil, {}} {
			if n, err := do(t.Context(), "c", none...); n != 0 || err != nil {
				t.Errorf("%s of all, or of a list of none: %d, %v", name, n, err)
			}
		}
		_, err = do(t.Context(), "nobody", changes.Position{Commit: 77, ID: 7})
		absent(t, name, err, "nobody")
	}
}

// Nobody knows where the feed will be at a time that is still to come. The clock of who
// asks may be a little ahead.
func TestTimesToCome(t *testing.T) {
	t.Parallel()
	_, l, _ := consumed(t)
	saved(t, l, changes.ConsumerConfig{Name: "c"}, "*")
	before := status(t, l, "c").Position
	if _, err := l.At(t.Context(), time.Now().Add(5*time.Second)); err != nil {
		t.Errorf("in 5 s: %v", err)
	}
	_, err := l.At(t.Context(), time.Now().Add(time.Hour))
	invalid(t, "At", err, "time: ")
	for _, when := range []string{"2099-01-01T00:00:00Z", "9999-12-31T23:59:59Z"} {
		_, err := l.Find(t.Context(), when)
		invalid(t, when, err, "position: "+when+" is still to come")
		invalid(t, when, l.Seek(t.Context(), "c", when), "to: "+when)
	}
	if at := status(t, l, "c").Position; at != before {
		t.Errorf("the consumer was at %s, and is at %s", before, at)
	}
}

// Where nothing was migrated everything says so, and once.
func TestNothingWasMigrated(t *testing.T) {
	t.Parallel()
	l := changes.New(pgtest.Pool(t, pgtest.Database(t)), changes.Config{})
	for name, do := range map[string]func(context.Context) error{
		"Consumers": func(ctx context.Context) error { _, err := l.Consumers(ctx); return err },
		"Parked":    func(ctx context.Context) error { _, err := l.Parked(ctx, "c", changes.Position{}, 1); return err },
		"Page": func(ctx context.Context) error {
			_, _, err := l.Page(ctx, changes.Position{}, 1, changes.Filter{})
			return err
		},
		"Seek":     func(ctx context.Context) error { return l.Seek(ctx, "c", "now") },
		"Seek to":  func(ctx context.Context) error { return l.Seek(ctx, "c", "2026-01-01T00:00:00Z") },
		"Find":     func(ctx context.Context) error { _, err := l.Find(ctx, "now"); return err },
		"Skip":     func(ctx context.Context) error { _, err := l.Skip(ctx, "c"); return err },
		"Captures": func(ctx context.Context) error { _, err := l.Captures(ctx, false); return err },
		"Save": func(ctx context.Context) error {
			return l.Save(ctx, changes.ConsumerConfig{Name: "c"}, []string{"*"}, changes.Sink{Notify: true})
		},
		"Rebase": func(ctx context.Context) error { return l.Rebase(ctx, false) },
	} {
		err := do(t.Context())
		if !errors.Is(err, fault.Unavailable) || !strings.HasSuffix(err.Error(), "; has this database been migrated? (howdah migrate)") ||
			strings.Count(err.Error(), "changes: ") != 1 || strings.Contains(err.Error(), "batch") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
