package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/pg"
)

// statements counts those that a pool sends.
type statements struct{ atomic.Int64 }

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.Add(1)
	return ctx
}

func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (s *statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, b pgx.TraceBatchStartData) context.Context {
	s.Add(int64(b.Batch.Len()))
	return ctx
}

func (s *statements) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (s *statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// tail starts a Tail, as a process has it, and what counts its statements.
func (f feed) tail(ctx context.Context) (tail *changes.Tail, sent *statements, stop func() error, err error) {
	sent = new(statements)
	cfg := f.lab.Pool.Config()
	cfg.ConnConfig.Tracer = sent
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	hub := pg.NewHub(pg.HubConfig{Conn: f.lab.Pool.Config().ConnConfig})
	tail = changes.NewTail(changes.New(pool, changes.Config{}), hub)
	end := running(ctx, hub.Run, tail.Run)
	return tail, sent, func() error {
		defer pool.Close()
		return end()
	}, nil
}

// watched returns how many statements a second are sent for n watchers while
// 1,000 rows a second are written, each in a transaction of its own, until all
// have seen all.
func (f feed) watched(n int) Spend {
	return func(ctx context.Context) (_ float64, err error) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := f.lab.Exec(ctx, `TRUNCATE t`); err != nil {
			return 0, err
		}
		tail, sent, stop, err := f.tail(ctx)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, stop()) }()
		from, err := f.Sync(ctx)
		if err != nil {
			return 0, err
		}
		rows := f.lab.N(2000, 300)
		var there, done sync.WaitGroup
		errs := make([]error, n)
		for i := range errs {
			there.Add(1)
			done.Go(func() {
				// The first, which everybody has to have seen, says that all are there.
				seen := 0
				for _, err := range tail.Watch(ctx, from, changes.Filter{}) {
					if errs[i] = err; err != nil {
						break
					}
					if seen++; seen == 1 {
						there.Done()
					}
					if seen == 1+rows {
						return
					}
				}
				if seen == 0 {
					there.Done()
				}
				errs[i] = errors.Join(errs[i], fmt.Errorf("a watcher saw %d of %d changes", seen, 1+rows))
			})
		}
		if err := f.insert(ctx, "t", 1); err != nil {
			return 0, err
		}
		there.Wait()
		before, began := sent.Load(), time.Now()
		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		for range rows {
			<-pace.C
			if err := f.insert(ctx, "t", 1); err != nil {
				return 0, err
			}
		}
		done.Wait()
		return float64(sent.Load()-before) / time.Since(began).Seconds(), errors.Join(errs...)
	}
}

// openWake measures from before a NOTIFY, or the COMMIT of a row, is sent to when it
// is known elsewhere, while nothing else is going on.
func openWake(ctx context.Context, lab *Lab) (control, ours Spend, err error) {
	f, err := openFeed(ctx, lab, "t")
	if err == nil {
		err = f.capture(ctx, changes.Capture{Table: "public.t"})
	}
	n := lab.N(15, 4)
	// Long enough for whoever has just been busy to wait for a doorbell again.
	const idle = 400 * time.Millisecond
	// The first, which finds connections that have planned nothing yet, does not count.
	p50 := func(ctx context.Context, prepare func() (send func(context.Context) error, err error), heard func() error) (float64, error) {
		var took []float64
		for range n + 1 {
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(idle):
			}
			send, err := prepare()
			if err != nil {
				return 0, err
			}
			began := time.Now()
			if err := send(ctx); err != nil {
				return 0, err
			}
			if err := heard(); err != nil {
				return 0, err
			}
			took = append(took, float64(time.Since(began).Microseconds()))
		}
		return median(took[1:]), nil
	}
	control = func(ctx context.Context) (float64, error) {
		listener, err := pgx.Connect(ctx, lab.URL)
		if err != nil {
			return 0, err
		}
		defer listener.Close(context.WithoutCancel(ctx))
		if _, err := listener.Exec(ctx, "LISTEN bare"); err != nil {
			return 0, err
		}
		notify := func(ctx context.Context) error { return lab.Exec(ctx, "NOTIFY bare") }
		return p50(ctx, func() (func(context.Context) error, error) { return notify, nil }, func() error {
			_, err := listener.WaitForNotification(ctx)
			return err
		})
	}
	ours = func(ctx context.Context) (_ float64, err error) {
		tail, _, stop, err := f.tail(ctx)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, stop()) }()
		from, err := f.Sync(ctx)
		if err != nil {
			return 0, err
		}
		seen := make(chan error)
		end := running(ctx, func(ctx context.Context) error {
			for _, err := range tail.Watch(ctx, from, changes.Filter{}) {
				select {
				case seen <- err:
				case <-ctx.Done():
				}
			}
			return nil
		})
		defer func() { err = errors.Join(err, end()) }()
		return p50(ctx, func() (func(context.Context) error, error) {
			tx, err := lab.Pool.Begin(ctx)
			if err != nil {
				return nil, err
			}
			if _, err := tx.Exec(ctx, "INSERT INTO t (name, mail, n) VALUES ("+userRow+"1)"); err != nil {
				return nil, errors.Join(err, tx.Rollback(ctx))
			}
			return tx.Commit, nil
		}, func() error {
			select {
			case err := <-seen:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}
	return control, ours, err
}
