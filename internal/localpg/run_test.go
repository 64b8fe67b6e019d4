package localpg_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/internal/localpg"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// supervise runs server.Run until the returned function is called.
func supervise(t *testing.T, server *localpg.Server) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- server.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := pgtest.Receive(t, result, "the end of Run"); err != nil {
			t.Errorf("Run = %v", err)
		}
		if localpg.Running(server.PID()) {
			t.Error("Run returned and the server is still there")
		}
	}
}

// answers waits until a new connection works, and tells how long that took.
func answers(t *testing.T, url string) time.Duration {
	t.Helper()
	began := time.Now()
	eventually(t, "the server answers", func() bool {
		conn, err := pgx.Connect(within(t), url)
		if err == nil {
			_ = conn.Close(context.Background())
		}
		return err == nil
	})
	return time.Since(began)
}

// kill -9 of the postmaster, with a backend that computes on: Run has a new one
// on the same URL, and what was committed is there.
func TestRunBringsTheServerBack(t *testing.T) {
	t.Parallel()
	for _, tied := range []bool{true, false} {
		server := start(t, localpg.Config{Dir: clusterDir(t), Tied: tied})
		url := server.URL()
		end := supervise(t, server)
		run(t, url, "CREATE TABLE kept (n int)")
		for n := range 3 {
			run(t, url, "INSERT INTO kept DEFAULT VALUES")
			busy, err := pgx.Connect(within(t), url)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				_, err := busy.Exec(context.Background(), "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b")
				ended <- err
			}()
			old := server.PID()
			kill9(t, old)
			eventually(t, "there is another server", func() bool { return server.PID() != old })
			t.Logf("tied %v: back %v after it was noticed", tied, answers(t, url))
			if err := pgtest.Receive(t, ended, "the end of the statement"); err == nil {
				t.Error("a statement survived its server")
			}
			_ = busy.Close(context.Background())
			if got := ask[int](t, url, "SELECT count(*) FROM kept"); got != n+1 {
				t.Errorf("rows = %d, want %d", got, n+1)
			}
		}
		end()
		if server.URL() != url {
			t.Error("the URL has changed")
		}
	}
}

// One who only reuses a server takes over when its starter dies with it.
func TestRunTakesOver(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	w := newWorker(t, order{Dir: dir, Tied: true}, nil)
	r := w.report()
	server := start(t, localpg.Config{Dir: dir, Tied: true})
	if !server.Reused() {
		t.Error("Reused = false, want true")
	}
	end := supervise(t, server)
	w.kill()
	eventually(t, "there is another server", func() bool { return server.PID() != r.PID })
	if answers(t, r.URL); server.Reused() {
		t.Error("Reused = true for the server that we started")
	}
	end()
}

func TestRunEndsWithStop(t *testing.T) {
	t.Parallel()
	server := start(t, localpg.Config{Dir: clusterDir(t), Tied: true})
	result := make(chan error, 1)
	go func() { result <- server.Run(context.Background()) }()
	stop(t, server)
	if err := pgtest.Receive(t, result, "the end of Run"); err != nil {
		t.Errorf("Run = %v", err)
	}
	if localpg.Running(server.PID()) {
		t.Error("the server is still there")
	}
}

// Stop may come at any moment of a new start, and nothing is left.
func TestStopWhileRunStarts(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	for _, tied := range []bool{true, false} {
		for _, wait := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond, 60 * time.Millisecond} {
			server := start(t, localpg.Config{Dir: dir, Tied: tied, Log: quiet})
			result := make(chan error, 1)
			go func() { result <- server.Run(context.Background()) }()
			kill9(t, server.PID())
			<-time.After(wait) // to meet another moment each time; any will do
			stop(t, server)
			if err := pgtest.Receive(t, result, "the end of Run"); err != nil {
				t.Errorf("Run = %v", err)
			}
			if left := localpg.Servers(server.Data()); len(left) > 0 {
				t.Errorf("tied %v, after %v: processes left: %v", tied, wait, left)
			}
		}
	}
}
