package changes_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

func parseURL(t *testing.T, url string) *pgx.ConnConfig {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A hot standby shows what was numbered and has been replayed, and asks for no
// more than it can have. Promoted, it carries the feed on in another era: nothing
// that was replayed is lost, and what only the old primary knew is told.
func TestStandbyAndPromotion(t *testing.T) {
	t.Parallel()
	primary, standby := pgtest.Pair(t)
	l, pool := logOf(t, primary.URL())
	exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v int)`)
	capture(t, l, changes.Capture{Table: "public.a"})
	other := pgtest.Pool(t, standby.URL())
	pgtest.Replayed(t, pool, other)
	mirror := changes.New(other, changes.Config{})
	add := func(pool *pgxpool.Pool, ids ...int) {
		t.Helper()
		for _, id := range ids {
			exec(t, pool, `INSERT INTO a VALUES ($1, 0)`, id)
		}
	}

	// An empty feed is no error there.
	if all, at := readAll(t, mirror, changes.Position{}, 10, changes.Filter{}); len(all) > 0 || at.Commit != 0 {
		t.Errorf("empty: %v, %s", all, at)
	}
	add(pool, 1, 2, 3)
	numbered, head := readAll(t, l, changes.Position{}, 10, changes.Filter{})
	add(pool, 4, 5) // committed, not numbered
	pgtest.Replayed(t, pool, other)
	shown, at := readAll(t, mirror, changes.Position{}, 2, changes.Filter{})
	if diff := cmp.Diff(numbered, shown); diff != "" || at != head {
		t.Errorf("the standby's feed ends at %s, want %s:\n%s", at, head, diff)
	}
	if _, err := mirror.Sync(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Sync on a standby, where nothing can be numbered = %v, want Unavailable", err)
	}
	if now, err := mirror.Find(t.Context(), "now"); err != nil || now != head {
		t.Errorf("now = %s, %v on a standby, want %s, the end of what has arrived", now, err, head)
	}

	// What has not arrived may be on its way, and is waited for.
	exec(t, pool, `INSERT INTO howdah.change_consumer (name, shards, patterns) VALUES ('c', 1, '{*}')`)
	exec(t, pool, `INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id) VALUES ('c', 0, 1, 0, 0)`)
	pgtest.Replayed(t, pool, other)
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if err := mirror.Wait(short, "c", changes.Position{Commit: head.Commit + 9}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait on a standby = %v, want that it waits", err)
	}
	if err := l.Forget(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}

	if found := codes(t, mirror); len(found) > 0 {
		t.Errorf("the doctor of a standby found %q", found)
	}

	// A Tail there follows what is numbered here.
	tail := newTail(t, standby.URL())
	if diff := cmp.Diff(numbered, watch(t, tail, changes.Position{}, changes.Filter{}, 3)); diff != "" {
		t.Error(diff)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	followed := make(chan changes.Change)
	go func() {
		defer close(followed)
		for c, err := range tail.Watch(ctx, head, changes.Filter{}) {
			if err != nil {
				t.Errorf("Watch on a standby: %v", err)
				return
			}
			select {
			case followed <- c:
			case <-ctx.Done():
				return
			}
		}
	}()
	next := func(id int) (c changes.Change) {
		t.Helper()
		c, ok := <-followed
		if want := fmt.Sprintf(`{"id":%d}`, id); !ok || string(c.Key) != want {
			t.Fatalf("the watcher saw %s, want %s", c.Key, want)
		}
		return c
	}
	if _, err := l.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	next(4)
	last := next(5)
	before, head := readAll(t, l, changes.Position{}, 10, changes.Filter{})

	// A consumer that knows both servers has handled all of it.
	effects(t, pool)
	both := eitherOf(t, primary.URL(), standby.URL())
	cfg := changes.ConsumerConfig{Name: "c", From: "start", Batch: 1}
	first := start(t, both, cfg, func(c *changes.Consumer) { c.Handle("*", effect("c")) })
	handled(t, l, "c")
	first.stop()

	add(pool, 6)
	pgtest.Replayed(t, pool, other) // but it has no number
	cutOff(t, pool, other)
	add(pool, 7)
	lost, err := l.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if lost.Commit != head.Commit+2 {
		t.Fatalf("the old primary's head is %s, want two after %s", lost, head)
	}

	// Another instance has read both of these there, and begins with the first, when the
	// old primary goes.
	began, gone := make(chan struct{}), make(chan struct{})
	wait := sync.OnceFunc(func() { close(began); <-gone })
	start(t, both, cfg, func(c *changes.Consumer) {
		c.Handle("*", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
			wait()
			return effect("c")(ctx, tx, cs)
		})
	})
	pgtest.Receive(t, began, "a batch begins")
	err = primary.Stop(ctx)
	close(gone)
	if err != nil {
		t.Fatal(err)
	}

	exec(t, other, `SELECT pg_promote(true, 60)`)
	pgtest.UntilSQL(t, other, "it has been promoted", `SELECT NOT pg_is_in_recovery()`)
	if _, _, err := mirror.Page(t.Context(), lost, 10, changes.Filter{}); !errors.Is(err, changes.ErrAhead) {
		t.Errorf("Page(%s), never replayed: %v, want ErrAhead", lost, err)
	}
	add(other, 8, 9)
	all, end := readAll(t, mirror, changes.Position{}, 2, changes.Filter{})
	var keys []string
	for _, c := range all {
		keys = append(keys, string(c.Key))
	}
	if got := strings.Join(keys, ""); got != `{"id":1}{"id":2}{"id":3}{"id":4}{"id":5}{"id":6}{"id":8}{"id":9}` {
		t.Errorf("after the promotion: %s", got)
	}
	if diff := cmp.Diff(before, all[:len(before)]); diff != "" {
		t.Errorf("what had been numbered has changed:\n%s", diff)
	}
	if all[5].Position.Commit != 1_000_000_000_000 || end.Commit != 1_000_000_000_002 {
		t.Errorf("the new era goes from %s to %s, want 1000000000000 to 1000000000002", all[5].Position, end)
	}
	if _, _, err := mirror.Page(t.Context(), lost, 10, changes.Filter{}); !errors.Is(err, changes.ErrAhead) {
		t.Errorf("Page(%s), in the lost history: %v, want ErrAhead", lost, err)
	}
	// Whoever stood before it goes on: by pages, and without having let go.
	rest, _ := readAll(t, mirror, last.Position, 10, changes.Filter{})
	if diff := cmp.Diff(all[5:], rest); diff != "" {
		t.Errorf("after %s:\n%s", last.Position, diff)
	}
	next(6)
	next(8)
	next(9)
	// So does the consumer, with what this server has.
	handled(t, mirror, "c")
	if diff := cmp.Diff(positions(t, mirror, changes.Filter{}), effectsOf(t, other, "c")); diff != "" {
		t.Errorf("effects of the consumer: %s", diff)
	}
	cancel()
	for range followed {
	}
}

// eitherOf is a URL that leads to the one of two servers that can be written to.
func eitherOf(t *testing.T, urls ...string) string {
	t.Helper()
	var hosts, ports []string
	for _, u := range urls {
		c := parseURL(t, u)
		hosts, ports = append(hosts, c.Host), append(ports, strconv.Itoa(int(c.Port)))
	}
	c := parseURL(t, urls[0])
	u := url.URL{Scheme: "postgres", User: url.UserPassword(c.User, c.Password), Path: "/" + c.Database, RawQuery: url.Values{
		"host": {strings.Join(hosts, ",")}, "port": {strings.Join(ports, ",")}, "target_session_attrs": {"read-write"}}.Encode()}
	return u.String()
}

// cutOff lets the standby get nothing any more, as when the primary is lost.
func cutOff(t *testing.T, primary, standby *pgxpool.Pool) {
	t.Helper()
	exec(t, standby, `ALTER SYSTEM SET primary_conninfo = ''`)
	exec(t, standby, `SELECT pg_reload_conf()`)
	pgtest.UntilSQL(t, primary, "the standby is gone", `SELECT NOT EXISTS (SELECT FROM pg_stat_replication)`)
}
