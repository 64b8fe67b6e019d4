package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// download is a job of River's that does nothing.
type download struct {
	N    int    `json:"n"`
	Item string `json:"item"`
}

// Kind implements river.JobArgs.
func (download) Kind() string { return "download" }

type downloader struct {
	river.WorkerDefaults[download]
	worked []atomic.Int32 // by N
}

// Work implements river.Worker.
func (d *downloader) Work(_ context.Context, job *river.Job[download]) error {
	d.worked[job.Args.N].Add(1)
	return nil
}

// riverJobs is River with n jobs, on the database of the row.
type riverJobs struct {
	lab *Lab
	n   int
}

func openRiver(ctx context.Context, lab *Lab, n int) (riverJobs, error) {
	r := riverJobs{lab, n}
	migrator, err := rivermigrate.New(riverpgxv5.New(lab.Pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return r, err
	}
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return r, err
}

// refill puts n jobs into the emptied queue.
func (r riverJobs) refill(ctx context.Context) error {
	client, err := river.NewClient(riverpgxv5.New(r.lab.Pool), &river.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if err := r.lab.Exec(ctx, "TRUNCATE river_job"); err != nil {
		return err
	}
	jobs := make([]river.InsertManyParams, r.n)
	for i := range jobs {
		jobs[i].Args = download{i, itemName(i)}
	}
	for some := range slices.Chunk(jobs, 10_000) {
		if _, err := client.InsertManyFast(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

// work lets River work all jobs, set up as its own benchmark is, and returns when
// each was worked once and that is written.
func (r riverJobs) work(ctx context.Context) (_ int, err error) {
	d := &downloader{worked: make([]atomic.Int32, r.n)}
	workers := river.NewWorkers()
	river.AddWorker(workers, d)
	client, err := river.NewClient(riverpgxv5.New(r.lab.Pool), &river.Config{
		Logger:            slog.New(slog.DiscardHandler),
		Workers:           workers,
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2000}},
		FetchCooldown:     2 * time.Millisecond,
		FetchPollInterval: 20 * time.Millisecond,
		JobTimeout:        -1, // none: a timer less for each job
	})
	if err != nil {
		return 0, err
	}
	completed, cancel := client.SubscribeConfig(&river.SubscribeConfig{ChanSize: r.n, Kinds: []river.EventKind{river.EventKindJobCompleted}})
	defer cancel()
	if err := client.Start(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, client.Stop(context.WithoutCancel(ctx))) }()
	for range r.n {
		select {
		case <-completed:
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Minute):
			return 0, errors.New("no job was completed for a minute")
		}
	}
	for i := range d.worked {
		if times := d.worked[i].Load(); times != 1 {
			return 0, fmt.Errorf("job %d was worked %d times", i, times)
		}
	}
	var left int
	if err := r.lab.Pool.QueryRow(ctx, "SELECT count(*) FROM river_job WHERE state <> 'completed'").Scan(&left); err != nil && !errors.Is(err, pgx.ErrNoRows) || left > 0 {
		return 0, fmt.Errorf("%d jobs are not completed: %w", left, err)
	}
	return r.n, nil
}
