package changes_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
)

// A page ends where it is full of what changes have, as they are sent and as they are
// stored, and the next goes on from there, also inside of a transaction.
func TestPagesOfLargeChanges(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"that can be compressed": `repeat('x', 20000)`,
		"that cannot":            `(SELECT string_agg(md5(i::text || g), '') FROM generate_series(1, 625) i)`,
		"in what they were":      `repeat('x', 20000)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, pool := newLog(t)
			exec(t, pool, `CREATE TABLE a (id int PRIMARY KEY, v text)`)
			capture(t, l, changes.Capture{Table: "public.a"})
			for i := range 3 {
				exec(t, pool, `INSERT INTO a SELECT g, `+text+` FROM generate_series($1 * 4 + 1, $1 * 4 + 4) g`, i)
			}
			if name == "in what they were" {
				exec(t, pool, `DELETE FROM a`)
			}
			whole, end := readAll(t, l, changes.Position{}, 1000, changes.Filter{})
			l.PageBytes(50_000)
			for _, f := range []changes.Filter{{}, {Patterns: patterns(t, "public.a")}, {Patterns: patterns(t, "public.a:insert,delete")}} {
				var all []changes.Change
				for after := (changes.Position{}); after != end; {
					page, next, err := l.Page(t.Context(), after, 1000, f)
					if err != nil || next == after || len(page) > 3 {
						t.Fatalf("Page(%s): %d changes, up to %s, %v", after, len(page), next, err)
					}
					all, after = append(all, page...), next
				}
				if !slices.EqualFunc(all, whole, equal) {
					t.Error(cmp.Diff(whole, all))
				}
			}
		})
	}
}

// A consumer and who watches get by with pages that are shorter than they might be, and
// the rows of a table are read as many at a time as make a page.
func TestLargeChangesAreHandedOver(t *testing.T) {
	t.Parallel()
	url, l, pool := watched(t)
	exec(t, pool, `CREATE TABLE large (id int PRIMARY KEY, v text)`)
	capture(t, l, changes.Capture{Table: "public.large"})
	exec(t, pool, `INSERT INTO large SELECT g, repeat('x', 1000000) FROM generate_series(1, 12) g`)
	exec(t, pool, `INSERT INTO large VALUES (13, '')`)
	effects(t, pool)
	most := 0
	run := start(t, url, changes.ConsumerConfig{Name: "c", From: "start", Batch: 1000, Backfill: []string{"public.large"}}, func(c *changes.Consumer) {
		c.Handle("public.large", func(ctx context.Context, tx pgx.Tx, cs []changes.Change) error {
			most = max(most, len(cs))
			return effect("c")(ctx, tx, cs)
		})
	})
	handled(t, l, "c")
	run.stop()
	var got []string
	for key := range effectsByKey(t, pool, "c") {
		got = append(got, key)
	}
	if all := effectsByKey(t, pool, "c"); len(got) != 13 || len(all[`{"id":1}`]) != 2 || most > 10 {
		t.Errorf("%d keys, of the first %v; %d at once", len(got), all[`{"id":1}`], most)
	}
	for i, c := range watch(t, newTail(t, url), changes.Position{}, changes.Filter{}, 13) {
		if want := fmt.Sprintf(`{"id":%d}`, i+1); string(c.Key) != want || c.Last != (i >= 11) {
			t.Errorf("%s last: %t, want %s", c.Key, c.Last, want)
		}
	}
}

// What is parked comes in such pages, too; those of one position together.
func TestPagesOfLargeParkedChanges(t *testing.T) {
	t.Parallel()
	_, l, pool := consumed(t)
	saved(t, l, changes.ConsumerConfig{Name: "c"}, "*")
	exec(t, pool, `
		INSERT INTO howdah.change_parked (consumer, shard, n, id, lane, relation, everything, change, head)
		SELECT 'c', 0, n, id, g, 'public.a', false, json_build_object('position', n || coalesce('.' || nullif(id, 0), ''), 'op', 'read', 'schema', 'public', 'table', 'a',
			'key', json_build_object('id', g), 'new', repeat('x', 20000)), true
		FROM (VALUES (1, 1, 1), (2, 1, 2), (3, 2, 0), (4, 2, 0), (5, 2, 0), (6, 3, 1)) v (g, n, id)`)
	l.PageBytes(30_000)
	var pages [][]string
	for after := (changes.Position{}); ; {
		some, err := l.Parked(t.Context(), "c", after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(some) == 0 {
			break
		}
		var keys []string
		for _, p := range some {
			keys, after = append(keys, string(p.Change.Key)), p.Change.Position
		}
		pages = append(pages, keys)
	}
	want := [][]string{{`{"id" : 1}`, `{"id" : 2}`}, {`{"id" : 3}`, `{"id" : 4}`, `{"id" : 5}`}, {`{"id" : 6}`}}
	if diff := cmp.Diff(want, pages); diff != "" {
		t.Error(diff)
	}
}

// A page that is cut off before its end, because that takes too long, is shorter the next
// time.
func TestPageThatIsCutOffIsShorterNext(t *testing.T) {
	t.Parallel()
	url, near, pool := watched(t)
	exec(t, pool, `CREATE TABLE large (id int PRIMARY KEY, v text)`)
	capture(t, near, changes.Capture{Table: "public.large"})
	exec(t, pool, `INSERT INTO large SELECT g, (SELECT string_agg(md5(i::text || g), '') FROM generate_series(1, 625) i) FROM generate_series(1, 50) g`)
	if _, err := near.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return &slow{Conn: conn, left: 500_000}, err
	}
	slowly, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer slowly.Close()
	l := changes.New(slowly, changes.Config{})
	l.PageBytes(50_000)
	var page []changes.Change
	for range 3 {
		if page, _, err = l.Page(t.Context(), changes.Position{}, 1000, changes.Filter{}); err == nil {
			break
		}
	}
	if len(page) != 3 || err != nil {
		t.Errorf("%d changes, %v", len(page), err)
	}
}

// slow is a connection that has brought no more than so many bytes when time is up.
type slow struct {
	net.Conn
	left int
}

func (s *slow) Read(b []byte) (int, error) {
	if s.left <= 0 {
		return 0, os.ErrDeadlineExceeded
	}
	n, err := s.Conn.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}
