package changes_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// However many shards are saved, each Runner has a number of connections, and who hangs
// with all of his leaves others some.
func TestSavedShardsShareConnections(t *testing.T) {
	t.Parallel()
	const conns, rows = 6, 200
	url, l, pool := consumed(t)
	for i := range 2 {
		startRunner(t, l, pool, func(ctx context.Context) (*pgxpool.Pool, error) {
			return pg.Open(ctx, pg.Config{URL: url, MaxConns: conns, ApplicationName: fmt.Sprint("shares ", i)})
		})
	}
	held, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Rollback(context.WithoutCancel(t.Context()))
	if _, err := held.Exec(t.Context(), `SELECT pg_advisory_xact_lock(4)`); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hangs", "hangs-too"} {
		save(t, l, changes.ConsumerConfig{Name: name, Shards: 64, From: "start"}, changes.Sink{SQL: `SELECT pg_advisory_xact_lock_shared(4), $1::jsonb`}, "public.a")
	}
	exec(t, pool, `INSERT INTO a SELECT g, 1 FROM generate_series(1, $1::int) g`, rows)
	pgtest.UntilSQL(t, pool, "some hang", `
		SELECT count(*) >= 4 -- of those of each Runner all but two
		FROM pg_locks
		WHERE locktype = 'advisory' AND NOT granted AND objid = 4 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	save(t, l, changes.ConsumerConfig{Name: "c", Shards: 64, From: "start"}, effectSink("c"), "public.a")
	gotEffects(t, pool, "c", rows)
	var most int
	if err := pool.QueryRow(t.Context(), `
		SELECT max(count)
		FROM (
			SELECT count(*)
			FROM pg_stat_activity
			WHERE datname = current_database() AND application_name LIKE 'shares %'
			GROUP BY application_name) s`).Scan(&most); err != nil || most > conns {
		t.Errorf("a Runner has %d connections, %v, want at most %d", most, err, conns)
	}
	if err := held.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	handled(t, l, "hangs")
}

// Who needs fewer turns than his share leaves the rest to others; each has one.
func TestShares(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		shards []int
		turns  int
		want   int // at most, each
	}{
		{[]int{1}, 14, 64}, {[]int{64}, 14, 14}, {[]int{64, 64}, 14, 7}, {[]int{64, 1, 1, 1}, 14, 11},
		{[]int{8, 4, 2}, 14, 64}, {[]int{8, 4, 3}, 14, 7}, {[]int{64, 64, 64}, 2, 1}, {nil, 14, 64},
	} {
		if got := changes.Shared(test.shards, test.turns); got != test.want {
			t.Errorf("%v of %d: %d, want %d", test.shards, test.turns, got, test.want)
		}
	}
}

// What all shards have to say is said by one of them, and not each time that it comes and
// goes.
func TestTroubleOfManyIsToldOnce(t *testing.T) {
	var logged bytes.Buffer
	was := slog.Default()
	defer slog.SetDefault(was)
	slog.SetDefault(slog.New(slog.NewTextHandler(&lockedWriter{w: &logged}, nil)))
	changes.Flap("c", 64, 10)
	if text := logged.String(); strings.Count(text, "trying again") != 1 || strings.Count(text, "changes go on") != 1 {
		t.Errorf("logged %s", text)
	}
}
