package changes_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// F9: whoever reads from where there is nothing to read is told.

func TestF9Expired(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	for i := range 4 {
		exec(t, m.pool, `INSERT INTO chk.a VALUES ($1, 1)`, i)
	}
	all, _ := readAll(t, m.log, changes.Position{}, 10, changes.Filter{})
	exec(t, m.pool, `UPDATE howdah.change_state SET floor = 2`)
	for _, after := range []changes.Position{{}, {Commit: 1}, all[0].Position, all[1].Position} {
		_, _, err := m.log.Page(t.Context(), after, 10, changes.Filter{})
		if !errors.Is(err, changes.ErrExpired) || !errors.Is(err, fault.NotFound) {
			t.Errorf("Page(%s): %v, want ErrExpired", after, err)
		}
	}
	for _, after := range []changes.Position{{Commit: 2}, all[2].Position, {Commit: 4}} {
		if _, _, err := m.log.Page(t.Context(), after, 10, changes.Filter{}); err != nil {
			t.Errorf("Page(%s): %v", after, err)
		}
	}
}

func TestF9Ahead(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.sync(t)
	for _, after := range []changes.Position{{Commit: 2}, {Commit: 2, ID: 1}, {Commit: math.MaxInt64}, {Commit: math.MaxInt64, ID: math.MaxInt64}, {Commit: math.MaxInt64 - 5000}} {
		_, next, err := m.log.Page(t.Context(), after, 10, changes.Filter{})
		if !errors.Is(err, changes.ErrAhead) || !errors.Is(err, fault.Conflict) || next != after {
			t.Errorf("Page(%s) = %s, %v, want ErrAhead", after, next, err)
		}
	}
}

// failover makes the next tick believe that the server's history parted here.
func (m *auditedLog) failover(t *testing.T) {
	t.Helper()
	exec(t, m.pool, `UPDATE howdah.change_tick SET timeline = '0000BEEF' WHERE tick = (SELECT max(tick) FROM howdah.change_tick)`)
}

// What a rebase was followed by in a history that was lost is told, too, though the feed
// ends just before an era here.
func TestF9FailoverAfterARebase(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.sync(t)
	m.elsewhere(t)
	if err := m.log.Rebase(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	at := m.sync(t)
	lost := changes.Position{Commit: at.Commit + 1}
	m.failover(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	m.sync(t)
	if _, _, err := m.log.Page(t.Context(), lost, 10, changes.Filter{}); !errors.Is(err, changes.ErrAhead) {
		t.Errorf("Page(%s), of the lost history: %v, want ErrAhead", lost, err)
	}
	if all, _ := readAll(t, m.log, at, 10, changes.Filter{}); len(all) != 1 {
		t.Errorf("%d changes follow %s, want 1", len(all), at)
	}
}

// A new era's numbers begin at the next multiple of a large number; whoever read on in the lost history is
// told, whoever did not reads over the gap.
func TestF9EraGap(t *testing.T) {
	t.Parallel()
	const era = 1_000_000_000_000
	m := newAudited(t)
	for i := range 3 {
		exec(t, m.pool, `INSERT INTO chk.a VALUES ($1, 1)`, i)
		m.sync(t)
	}
	m.failover(t)
	before := m.sync(t) // nothing has happened since
	if _, _, err := m.log.Page(t.Context(), before, 10, changes.Filter{}); err != nil {
		t.Errorf("Page(%s), the end that Sync returned: %v", before, err)
	}
	exec(t, m.pool, `INSERT INTO chk.a VALUES (3, 1)`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (4, 1)`)
	if at := m.sync(t); at.Commit != era+1 {
		t.Errorf("Sync() = %s, want %d", at, int64(era+1))
	}
	m.failover(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (5, 1)`)
	if at := m.sync(t); at.Commit != 2*era {
		t.Errorf("Sync() = %s, want %d", at, int64(2*era))
	}
	want := []int64{1, 2, 3, era, era + 1, 2 * era}
	for i := range len(want) + 1 {
		var after changes.Position
		if i > 0 {
			after.Commit = want[i-1]
		}
		for _, limit := range []int{1, 2, 1000} {
			var got []int64
			all, end := readAll(t, m.log, after, limit, changes.Filter{})
			for _, c := range all {
				got = append(got, c.Position.Commit)
			}
			if !slices.Equal(got, want[i:]) || end.Commit != 2*era {
				t.Errorf("from %s by %d: commits %v to %s, want %v", after, limit, got, end, want[i:])
			}
		}
		if all, end := readAll(t, m.log, after, 10, changes.Filter{Ops: []changes.Op{changes.Truncate}}); len(all) > 0 || end.Commit != 2*era {
			t.Errorf("from %s, nothing let through: %d changes to %s", after, len(all), end)
		}
	}
	for _, after := range []changes.Position{before, {Commit: 3}} {
		if _, _, err := m.log.Page(t.Context(), after, 10, changes.Filter{}); err != nil {
			t.Errorf("Page(%s): %v", after, err)
		}
	}
	for _, after := range []changes.Position{{Commit: 4}, {Commit: 4, ID: 9}, {Commit: era - 1, ID: 9}, {Commit: era / 2}, {Commit: era + 2}, {Commit: 2*era - 2}} {
		if _, _, err := m.log.Page(t.Context(), after, 10, changes.Filter{}); !errors.Is(err, changes.ErrAhead) {
			t.Errorf("Page(%s): %v, want ErrAhead", after, err)
		}
	}

	// Who waits for what was lost waits for nothing, and both are told where it was.
	m.consumerAt(t, "c", changes.Position{Commit: 2 * era})
	lost := changes.Position{Commit: 4}
	_, _, err := m.log.Page(t.Context(), lost, 10, changes.Filter{})
	for _, err := range []error{err, m.log.Wait(t.Context(), "c", lost)} {
		if !errors.Is(err, changes.ErrAhead) || !strings.Contains(err.Error(), fmt.Sprintf("4 is between 3 and %d, ", int64(era))) {
			t.Errorf("of %s: %v, want ErrAhead, and the bounds", lost, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := m.log.Wait(ctx, "c", changes.Position{Commit: 2*era + 1}); !errors.Is(err, changes.ErrAhead) {
		t.Errorf("Wait for what was never reached: %v, want ErrAhead", err)
	}
	for _, there := range []changes.Position{before, {Commit: era}, {Commit: 2 * era}} {
		if err := m.log.Wait(t.Context(), "c", there); err != nil {
			t.Errorf("Wait for %s: %v", there, err)
		}
	}
}

// Two eras with nothing between them.
func TestF9EmptyEra(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	for i := range 3 {
		exec(t, m.pool, `INSERT INTO chk.a VALUES ($1, 1)`, i)
		m.sync(t)
		for range 2 {
			m.failover(t)
			at := m.sync(t)
			if _, _, err := m.log.Page(t.Context(), at, 10, changes.Filter{}); err != nil {
				t.Errorf("Page(%s), the end that Sync returned: %v", at, err)
			}
		}
	}
	if all, _ := readAll(t, m.log, changes.Position{}, 10, changes.Filter{}); len(all) != 3 {
		t.Errorf("%d changes, want 3", len(all))
	}
}

func TestF9Restored(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"another system":    `UPDATE howdah.change_state SET system = 1`,
		"another database":  `UPDATE howdah.change_state SET database = 1`,
		"another table":     `UPDATE howdah.change_state SET ticks = 1`,
		"ids run backwards": `UPDATE howdah.change_tick SET snap = '900000000000:900000000000:'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newAudited(t)
			exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
			at := m.sync(t)
			exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
			exec(t, m.pool, sql)
			_, err := m.log.Sync(t.Context())
			_, _, pageErr := m.log.Page(t.Context(), at, 10, changes.Filter{})
			for _, err := range []error{err, pageErr} {
				if !errors.Is(err, changes.ErrRestored) || !errors.Is(err, fault.Conflict) || !strings.Contains(fmt.Sprint(err), "rebase") {
					t.Errorf("%v, want ErrRestored with the word rebase", err)
				}
			}
		})
	}
}

// A restored log is refused before anything is written to it, and a consumer that is
// behind in it is handed nothing: it is handed that where the log came from.
func TestF9RestoredAndIdle(t *testing.T) {
	t.Parallel()
	for _, sql := range []string{`UPDATE howdah.change_state SET database = 1`, `UPDATE howdah.change_state SET ticks = 1`, `UPDATE howdah.change_state SET system = 1`} {
		m := newAudited(t)
		exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
		at := m.sync(t)
		c := changes.NewConsumer(m.pool, pg.NewHub(pg.HubConfig{Conn: m.pool.Config().ConnConfig}), changes.ConsumerConfig{Name: "c", From: "start"})
		c.Handle("*", func(_ context.Context, _ pgx.Tx, cs []changes.Change) error {
			t.Errorf("after %s the consumer is handed %v", sql, cs)
			return nil
		})
		if err := c.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		tail := newTail(t, m.pool.Config().ConnString())
		waiting := ended(t, tail, at)
		exec(t, m.pool, sql)
		if !strings.Contains(sql, "system") { // to be told of which costs an idle look too much
			if _, err := m.log.Sync(t.Context()); !errors.Is(err, changes.ErrRestored) {
				t.Errorf("Sync, after %s: %v, want ErrRestored", sql, err)
			}
		}
		tx, err := m.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for name, l := range map[string]*changes.Log{"Page": m.log, "Page in a transaction": m.log.WithTx(tx)} {
			for _, after := range []changes.Position{{}, at} {
				page, _, err := l.Page(t.Context(), after, 10, changes.Filter{})
				if !errors.Is(err, changes.ErrRestored) || len(page) > 0 {
					t.Errorf("%s(%s), after %s: %v, %v, want ErrRestored", name, after, sql, page, err)
				}
			}
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
		if err := pgtest.Receive(t, ended(t, tail, changes.Position{}), "the end of Watch in a copy"); !errors.Is(err, changes.ErrRestored) {
			t.Errorf("Watch from the start, after %s: %v, want ErrRestored", sql, err)
		}
		exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`) // which has the tail find out, whatever it looks at while idle
		if err := pgtest.Receive(t, waiting, "the end of a Watch that waits"); !errors.Is(err, changes.ErrRestored) {
			t.Errorf("Watch at the end, after %s: %v, want ErrRestored", sql, err)
		}
		rivalTick(t, m.pool) // which keeps others from numbering
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := c.Run(ctx); !errors.Is(err, changes.ErrRestored) {
			t.Errorf("Run, after %s: %v, want ErrRestored", sql, err)
		}
	}
}

// ended watches from after on; what comes is the error that it ends with, nil where it
// is shown a change.
func ended(t *testing.T, tail *changes.Tail, after changes.Position) <-chan error {
	ctx, cancel := context.WithCancel(t.Context())
	end := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, err := range tail.Watch(ctx, after, changes.Filter{}) {
			end <- err
			return
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return end
}

// A consumer ends where the log turns out to be from another database while it runs.
func TestF9RestoredUnderAConsumer(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	running := start(t, url, changes.ConsumerConfig{Name: "c", From: "start"}, all("c"))
	exec(t, pool, `INSERT INTO a VALUES (1, 1)`)
	handled(t, l, "c")
	exec(t, pool, `UPDATE howdah.change_state SET database = 1`)
	if err := pgtest.Receive(t, running.done, "the end of Run in a copy"); !errors.Is(err, changes.ErrRestored) {
		t.Errorf("Run: %v, want ErrRestored", err)
	}
}

// A copy of a database where nothing was numbered yet, as of a template, goes on by
// itself; doctor has nothing to say of it, and from then on it is a database of its own.
func TestF9CopiedBeforeItsFirstCommit(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `UPDATE howdah.change_state SET database = 1, ticks = 1`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	if found := codes(t, m.log); slices.Contains(found, "restored howdah.change") {
		t.Errorf("doctor finds %q", found)
	}
	if at := m.sync(t); at.Commit != 1 {
		t.Errorf("the feed is at %s", at)
	}
	exec(t, m.pool, `UPDATE howdah.change_state SET database = 1`)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (2, 1)`)
	if _, err := m.log.Sync(t.Context()); !errors.Is(err, changes.ErrRestored) {
		t.Errorf("a copy of what was numbered: %v", err)
	}
}

// A page of a transaction in its own snapshot shows what was numbered when the
// snapshot was taken.
func TestF6SnapshotStandsStill(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `INSERT INTO chk.a VALUES (1, 1)`)
	m.sync(t)
	tx, err := m.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	for i := range 3 {
		page, next, err := m.log.WithTx(tx).Page(t.Context(), changes.Position{}, 10, changes.Filter{})
		if err != nil || len(page) != 1 || next.Commit != 1 {
			t.Errorf("Page() = %d changes, %s, %v, want 1 to 1", len(page), next, err)
		}
		exec(t, m.pool, `INSERT INTO chk.a VALUES ($1, 1)`, 2+i)
		m.sync(t)
	}
}
