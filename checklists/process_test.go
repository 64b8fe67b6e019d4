package checklists_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/checklists"
)

// What makes the test binary a worker, and what that does.
const (
	workerVar  = "HOWDAH_TEST_WORKER"
	workerDoes = "HOWDAH_TEST_WORKER_DOES"
)

// workerProcess works on the list "l" of a database until nothing is left. For each
// attempt that begins it writes a line: the item, the attempt, and the error of the
// one before.
func workerProcess(url, does string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer pool.Close()
	begin := func(item checklists.Item) {
		fmt.Printf("%s\t%d\t%s\n", item.Name, item.Attempts, item.Error) // in one write: all of it or nothing
	}
	cfg := checklists.WorkerConfig{
		List: "l", Parallel: 8, Batch: 100, Lease: time.Second, UntilEmpty: true, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	switch does {
	case "nothing":
		cfg.Do = func(_ context.Context, item checklists.Item) error {
			begin(item)
			return nil
		}
	case "ask": // done when a line comes
		cfg.Lease = 3 * time.Second // which must not end by itself on a machine that is busy
		in := bufio.NewReader(os.Stdin)
		cfg.Do = func(_ context.Context, item checklists.Item) error {
			begin(item)
			_, err := in.ReadString('\n')
			return err
		}
	case "effect":
		cfg.Parallel = 2
		cfg.DoTx = func(ctx context.Context, tx pgx.Tx, item checklists.Item) error {
			begin(item)
			// Slow enough for a kill to come between.
			_, err := tx.Exec(ctx, `INSERT INTO public.effects SELECT $1 FROM pg_sleep(0.01)`, item.Name)
			return err
		}
	}
	if err := checklists.NewWorker(checklists.New(pool, checklists.Config{}), cfg).Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// process is a worker.
type process struct {
	*exec.Cmd
	in    io.WriteCloser
	ended chan error  // of the process, once its lines are read
	began atomic.Bool // something
	log   lines
}

// lines is what was logged.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// startWorker starts a worker, whose lines are given to each, one after the other.
func startWorker(t testing.TB, url, does string, each func(line string)) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: exec.Command(self), ended: make(chan error, 1)}
	p.Env = append(os.Environ(), workerVar+"="+url, workerDoes+"="+does, "GORACE=atexit_sleep_ms=0")
	p.Stderr = &p.log
	if p.in, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadString('\n')
			if err != nil { // what is no whole line did not begin
				break
			}
			p.began.Store(true)
			each(strings.TrimSuffix(line, "\n"))
		}
		p.ended <- p.Wait()
	}()
	return p
}

// crew is workers that work on one list, one of which is killed now and then.
type crew struct {
	t         testing.TB
	url, does string

	mu     sync.Mutex
	began  map[string]int // by item and attempt
	wrong  []string
	killed int
}

func (c *crew) note(line string) {
	fields := strings.SplitN(line, "\t", 3)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began[fields[0]+" "+fields[1]]++
	if fields[1] != "1" && fields[2] != "lease expired" {
		c.wrong = append(c.wrong, line)
	}
}

// work runs n workers until nothing is left, and kills one of them, which is
// replaced, after each pause.
func (c *crew) work(n int, kills int, pause time.Duration) {
	c.t.Helper()
	type end struct {
		p   *process
		err error
	}
	ends := make(chan end)
	running := []*process{}
	start := func() {
		p := startWorker(c.t, c.url, c.does, c.note)
		running = append(running, p)
		go func() { ends <- end{p, <-p.ended} }()
	}
	for range n {
		start()
	}
	victims := map[*process]bool{}
	ticks := time.NewTicker(pause)
	defer ticks.Stop()
	deadline := within(c.t, 3*patience)
	for len(running) > 0 {
		select {
		case <-ticks.C:
			// The oldest, once it has begun something: where a process takes longer to start
			// than the others to be killed nothing would ever be done.
			if victim := running[0]; c.killed < kills && len(running) == n && victim.began.Load() {
				victims[victim] = true
				c.killed++
				victim.Process.Kill()
			}
		case e := <-ends:
			for i, p := range running {
				if p == e.p {
					running = append(running[:i:i], running[i+1:]...)
					break
				}
			}
			switch {
			case victims[e.p]:
				start()
			case e.err != nil:
				c.t.Errorf("a worker ended with %v: %s", e.err, e.p.log.String())
			}
		case <-deadline.Done():
			for _, p := range running {
				p.Process.Kill()
				<-ends
			}
			c.t.Fatal("they do not end")
		}
	}
}
