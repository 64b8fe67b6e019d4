package main

import (
	"context"
	"fmt"
	"time"

	"github.com/howdah-db/howdah/changes"
)

var changesRows = []Row{
	Writers{Clients: 8, Bars: [4]float64{0.60, 0.45, 1.5, 0.85}},
	Writers{Clients: 32, Bars: [4]float64{0.65, 0.45, 2.2, 0.85}},
	Cost{
		Work: "INSERT … SELECT of many rows, captured by statement", Control: "captured by row", Unit: "ms", Bar: 0.65,
		Open: func(ctx context.Context, lab *Lab) (control, ours Spend, err error) {
			f, err := openFeed(ctx, lab, "by_row", "by_statement")
			if err == nil {
				err = f.capture(ctx, changes.Capture{Table: "public.by_row"}, changes.Capture{Table: "public.by_statement", Bulk: true})
			}
			n := lab.N(300_000, 30_000)
			return f.load("by_row", n), f.load("by_statement", n), err
		},
	},
	Ratio{
		Work: "page 1,000 a call, through one-row transactions", Control: "WHERE id > $1 ORDER BY id LIMIT 1000 of a plain table", Bar: 0.35,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			f, err := openFeed(ctx, lab, "t")
			if err == nil {
				err = f.commits(ctx, lab.N(200_000, 20_000))
			}
			return f.pages(ctx, err)
		},
	},
	Ratio{
		Work: "page 1,000 a call, inside one transaction", Control: "WHERE id > $1 ORDER BY id LIMIT 1000 of a plain table", Bar: 0.60,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			f, err := openFeed(ctx, lab, "t")
			if err == nil {
				err = f.capture(ctx, changes.Capture{Table: "public.t"})
			}
			if err == nil {
				err = f.insert(ctx, "t", lab.N(200_000, 20_000))
			}
			return f.pages(ctx, err)
		},
	},
	Ratio{
		Work: "a Consumer, 100 a batch, that does nothing", Control: "page 1,000 a call, of the same", Bar: 0.50,
		Open: func(ctx context.Context, lab *Lab) (control, ours Side, err error) {
			rows := lab.N(200_000, 20_000)
			f, err := openFeed(ctx, lab, "t")
			if err == nil {
				err = f.commits(ctx, rows)
			}
			control, ours = f.consumed(rows)
			return control, ours, err
		},
	},
	Ratio{
		Work: "a Consumer, one a batch, after 100,000 checkpoints under an old snapshot", Control: "a new one", Bar: 0.80,
		Open: openCheckpoints,
	},
	Cost{
		Work: "retention of a leaf of a million changes", Control: "DELETE and VACUUM of them", Unit: "ms", Bar: 0.20,
		Open: openRetention,
	},
	Cost{
		Work: "a tick over 100,000 transactions", Control: "SELECT xid, max(id) … GROUP BY 1 over them", Unit: "ms", Bar: 10,
		Open: openTick,
	},
	Cost{
		Work: "a tick with nothing to do", Control: "SELECT 1", Unit: "µs", Bar: 6,
		Open: func(ctx context.Context, lab *Lab) (control, ours Spend, err error) {
			f, err := openFeed(ctx, lab, "t")
			if err == nil {
				err = f.commits(ctx, 1000)
			}
			n := lab.N(2000, 500)
			return each(n, func(ctx context.Context) error {
					var one int
					return lab.Pool.QueryRow(ctx, "SELECT 1").Scan(&one)
				}), each(n, func(ctx context.Context) error {
					_, err := f.Sync(ctx)
					return err
				}), err
		},
	},
	Cost{
		Work: "1,000 watchers of 1,000 changes a second: statements", Control: "1 watcher", Unit: "/s", Bar: 1.2,
		Open: func(ctx context.Context, lab *Lab) (control, ours Spend, err error) {
			f, err := openFeed(ctx, lab, "t")
			if err == nil {
				err = f.capture(ctx, changes.Capture{Table: "public.t"})
			}
			return f.watched(1), f.watched(1000), err
		},
	},
	Cost{
		Work: "COMMIT to change at a watcher, idle, p50", Control: "NOTIFY to LISTEN", Unit: "µs", Bar: 8, Most: 10_000,
		Open: openWake,
	},
}

// each returns the mean time of n calls.
func each(n int, do func(context.Context) error) Spend {
	return func(ctx context.Context) (µs float64, err error) {
		began := time.Now()
		for range n {
			if err := do(ctx); err != nil {
				return 0, err
			}
		}
		return float64(time.Since(began).Nanoseconds()) / 1e3 / float64(n), nil
	}
}

// openTick looks at the same transactions again and again: what numbered them is
// taken back before each tick.
func openTick(ctx context.Context, lab *Lab) (control, ours Spend, err error) {
	f, err := openFeed(ctx, lab, "t")
	if err != nil {
		return nil, nil, err
	}
	if _, err = f.Sync(ctx); err != nil {
		return nil, nil, err
	}
	var tick int64
	if err = lab.Pool.QueryRow(ctx, "SELECT max(tick) FROM howdah.change_tick").Scan(&tick); err != nil {
		return nil, nil, err
	}
	n := lab.N(100_000, 20_000)
	ms := func(do func(context.Context) (int64, error)) Spend {
		return func(ctx context.Context) (float64, error) {
			err := lab.Exec(ctx, "TRUNCATE howdah.change_commit", fmt.Sprintf("DELETE FROM howdah.change_tick WHERE tick > %d", tick))
			if err != nil {
				return 0, err
			}
			began := time.Now()
			found, err := do(ctx)
			took := float64(time.Since(began).Microseconds()) / 1e3
			if err == nil && found != int64(n) {
				err = fmt.Errorf("%d of %d transactions were found", found, n)
			}
			return took, err
		}
	}
	return ms(func(ctx context.Context) (found int64, err error) {
			err = lab.Pool.QueryRow(ctx, `
				SELECT count(last)
				FROM (
					SELECT xid, max(id) AS last
					FROM howdah.change
					WHERE xid >= (SELECT next FROM howdah.change_tick ORDER BY tick DESC LIMIT 1)
					GROUP BY 1) t`).Scan(&found)
			return found, err
		}), ms(func(ctx context.Context) (int64, error) {
			at, err := f.Sync(ctx)
			return at.Commit, err
		}), f.unnumbered(ctx, n, 1)
}
