package checklists_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// While the database is away a worker keeps what it has to tell, and tells it when
// it is back: nothing is done twice.
func TestAWorkerKeepsWhatItCannotTell(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	proxy := pgtest.NewProxy(t, url)
	direct, _ := newList(t, url, 3)
	s := checklists.New(pgtest.Pool(t, proxy.URL()), checklists.Config{})
	var log lines
	var did atomic.Int64
	began, finish := make(chan bool, 3), make(chan bool)
	w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{
		UntilEmpty: true, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Do: func(context.Context, checklists.Item) error {
			began <- true
			<-finish
			did.Add(1)
			return nil
		},
	}))
	ended := make(chan error, 1)
	go func() { ended <- w.Run(within(t, patience)) }()
	for range 3 {
		pgtest.Receive(t, began, "an attempt begins")
	}
	proxy.Refuse(true)
	proxy.Cut()
	close(finish)
	eventually(t, "it notices", func() bool { return strings.Contains(log.String(), "the database does not answer") })
	proxy.Refuse(false)
	if err := pgtest.Receive(t, ended, "the end of Run"); err != nil {
		t.Error(err)
	}
	if got := progress(t, direct, "l"); got.Done != 3 || got.Left != 0 || did.Load() != 3 {
		t.Errorf("%d done, %+v", did.Load(), got)
	}
	if !strings.Contains(log.String(), "the database is back") || strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("log: %s", log.String())
	}
}

// An answer that was lost on its way is asked for again; what had been heard is
// not taken for lost.
func TestAWorkerWhoseTellingIsCut(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	proxy := pgtest.NewProxy(t, url)
	direct, _ := newList(t, url, 1)
	s := checklists.New(pgtest.Pool(t, proxy.URL()), checklists.Config{})
	var log lines
	w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{
		UntilEmpty: true, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Do: func(context.Context, checklists.Item) error {
			proxy.CutOn([]byte("item-00000"))
			return nil
		},
	}))
	if err := w.Run(within(t, patience)); err != nil {
		t.Error(err)
	}
	if got := progress(t, direct, "l"); got.Done != 1 || got.Left != 0 || got.Failed != 0 {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(log.String(), "does not answer") || strings.Contains(log.String(), "not recorded") {
		t.Errorf("log: %s", log.String())
	}
}

// When the database stays away for longer than the lease what runs is told so, and
// what cannot be told is logged, with its item.
func TestAWorkerWithoutADatabase(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	proxy := pgtest.NewProxy(t, url)
	newList(t, url, 2)
	s := checklists.New(pgtest.Pool(t, proxy.URL()), checklists.Config{})
	var log lines
	ctx, stop := context.WithCancel(within(t, patience))
	causes := make(chan error, 1)
	began := make(chan bool, 2)
	w := checklists.NewWorker(s, quiet(checklists.WorkerConfig{
		Lease: 3 * time.Second, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Do: func(ctx context.Context, item checklists.Item) error {
			began <- true
			<-ctx.Done()
			if item.Name == "item-00001" {
				return nil // it managed to finish
			}
			causes <- context.Cause(ctx)
			return ctx.Err()
		},
	}))
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	pgtest.Receive(t, began, "an attempt begins")
	pgtest.Receive(t, began, "an attempt begins")
	proxy.Refuse(true)
	proxy.Cut()
	if cause := pgtest.Receive(t, causes, "the end of an attempt"); !errors.Is(cause, checklists.ErrLost) {
		t.Errorf("its ctx ended with %v", cause)
	}
	eventually(t, "it gives up", func() bool {
		return strings.Contains(log.String(), `could not be recorded; it will come round again" list=l item=item-00001 outcome=done`)
	})
	stop()
	if err := pgtest.Receive(t, ended, "the end of Run"); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "the database does not answer"); n != 1 {
		t.Errorf("it is said %d times: %s", n, log.String())
	}
}
