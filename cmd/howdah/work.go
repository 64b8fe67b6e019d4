package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/pg"
)

// work is the flags and arguments of the command.
type work struct {
	list, worker string
	jobs         int
	lease        time.Duration
	timeout      time.Duration
	follow       bool
	command      []string
}

func (c *cli) checklistsWork() *cobra.Command {
	var w work
	cmd := &cobra.Command{
		Use:   "work LIST -- COMMAND [ARGUMENT...]",
		Short: "Run a command for each item of a list, until nothing is left",
		Long: `Runs a command for each item of a list, until nothing is left on it but dead items.
Any number of these may work on one list, on any machines.

In the arguments {} stands for the item; the environment has HOWDAH_ITEM,
HOWDAH_ATTEMPT (1 for the first) and HOWDAH_PAYLOAD (JSON, or empty). The command has
no stdin; its stdout and stderr are passed on. Its exit code says what becomes of the
item:

  0      done
  65     dead: not to be tried again
  75     tried again later, and this attempt does not count
  other  failed, as after a signal; the last 1,024 bytes of stderr are kept as the error

An interrupt waits for the commands that run, a second one ends them; what has not
finished is given back as if it had never been claimed. So it is when nobody reads
their output any longer (| head) and a command fails.`,
		Example: `  howdah checklists work downloads -j 8 --lease 5m -- test -n {}
  howdah checklists work downloads -- sh -c 'echo $HOWDAH_ITEM, attempt $HOWDAH_ATTEMPT' > log.txt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return errors.New("want a list, then --, then a command")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			w.list, w.command = args[0], args[1:]
			if err := w.check(); err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return client.Following(ctx, func(ctx context.Context, _ *changes.Tail) error { return c.work(ctx, client, &w) })
			})
		},
	}
	cmd.Flags().IntVarP(&w.jobs, "jobs", "j", 8, "commands at the same time")
	cmd.Flags().DurationVar(&w.lease, "lease", time.Minute, "how long items stay away when this process dies, 1s to 24h; while it lives the lease is extended")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "end a command that takes longer, as failed; 0: however long it takes")
	cmd.Flags().StringVar(&w.worker, "worker", "", "who has the items (default host:pid)")
	cmd.Flags().BoolVar(&w.follow, "follow", false, "when nothing is left wait for more, until interrupted")
	return cmd
}

func (w *work) check() error {
	if w.jobs < 1 || w.jobs > 1000 {
		return pg.Refuse("--jobs", "%d; want 1 to 1,000", w.jobs)
	}
	if w.lease == 0 {
		return pg.Refuse("--lease", "0s; want %v to %v", checklists.MinLease, checklists.MaxLease) // for a Worker the zero value is its default
	}
	if w.timeout < 0 {
		return pg.Refuse("--timeout", "%v; want 0s (none) or more", w.timeout)
	}
	if strings.Contains(w.command[0], "{}") {
		return nil
	}
	if _, err := exec.LookPath(w.command[0]); err != nil {
		return pg.Refuse("command", "%v", err)
	}
	return nil
}

// work runs a worker whose handler is the command.
func (c *cli) work(ctx context.Context, client *howdah.Client, w *work) error {
	begun, err := client.Checklists.Progress(ctx, w.list)
	if err != nil {
		return err // a worker would wait for the database
	}
	screen := &screen{out: c.err, live: !c.quiet && isTerminal(c.err)}
	run := &runner{command: w.command, stdout: screen.through(c.out), stderr: screen.through(c.err)}
	working, stop := context.WithCancel(ctx)
	defer stop()
	out, file := c.piped()
	if file != nil {
		run.stdout = file // the command's own, without us between
		run.unread = func() bool {
			if !isUnread(file) {
				return false
			}
			stop()
			return true
		}
	}
	hurry, quiet := hurryOnSecond(ctx)
	defer quiet()
	level := slog.LevelWarn
	if c.quiet {
		level = slog.LevelError
	}
	worker := checklists.NewWorker(client.Checklists, checklists.WorkerConfig{
		List: w.list, Name: w.worker, Do: run.do, Parallel: w.jobs, Batch: 2 * w.jobs, Lease: w.lease, Timeout: w.timeout,
		Grace: math.MaxInt64 / 4, Hurry: hurry, UntilEmpty: !w.follow, Hub: client.Hub,
		Log: slog.New(slog.NewTextHandler(run.stderr, &slog.HandlerOptions{Level: level})),
	})

	watching, seen := context.WithCancel(context.WithoutCancel(ctx))
	var watcher sync.WaitGroup
	if screen.live {
		begun.Rate = 0 // whatever was done before
		screen.show(progressWords(begun))
		watcher.Go(func() { watchWork(watching, client.Checklists, w.list, screen) })
	}
	err = worker.Run(working)
	seen()
	watcher.Wait()
	screen.clear()
	if err != nil {
		return err
	}
	if working.Err() != nil && ctx.Err() == nil {
		out.closed.Store(true)
		return syscall.EPIPE
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if p, err := client.Checklists.Progress(ending, w.list); err == nil {
		p.Rate = 0 // it has come to its end
		c.note(progressWords(p))
	}
	if ctx.Err() != nil && !w.follow {
		return ctx.Err()
	}
	return nil
}

// hurryOnSecond returns a channel that is closed by the second signal: the first
// ends ctx.
func hurryOnSecond(ctx context.Context) (hurry <-chan struct{}, stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	closed, over := make(chan struct{}), make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		for n := 0; n < 2; n++ {
			select {
			case <-signals:
			case <-over:
				return
			}
		}
		close(closed)
	})
	return closed, func() {
		signal.Stop(signals)
		close(over)
		waiting.Wait()
	}
}

// The exit codes of a command that mean more than success and failure, after
// sysexits.h: EX_DATAERR and EX_TEMPFAIL.
const (
	exitDead  = 65
	exitLater = 75
)

// runner runs the command for items.
type runner struct {
	command        []string
	stdout, stderr io.Writer
	unread         func() bool // nobody reads stdout any longer, which is the end of the work; nil: unknown
}

func (r *runner) do(ctx context.Context, item checklists.Item) error {
	args := make([]string, len(r.command))
	for i, arg := range r.command {
		args[i] = strings.ReplaceAll(arg, "{}", item.Name)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "HOWDAH_ITEM="+item.Name, fmt.Sprintf("HOWDAH_ATTEMPT=%d", item.Attempts), "HOWDAH_PAYLOAD="+string(item.Payload))
	said := &tailOf{most: 1024}
	cmd.Stdout, cmd.Stderr = r.stdout, io.MultiWriter(said, r.stderr)
	// A group of its own: an interrupt typed at the terminal is ours, and what it
	// started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	defer tie(cmd.SysProcAttr)()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = time.Second // then it is killed; nor is a child waited for that holds its stderr
	err := cmd.Run()
	if ctx.Err() != nil && cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // whatever of the group is left
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well
	}
	if err == nil {
		return nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err // it never ran
	}
	if text := strings.TrimSpace(said.String()); text != "" {
		err = errors.New(text)
	}
	switch exit.ExitCode() {
	case exitDead:
		return checklists.Dead(err)
	case exitLater:
		return checklists.Release(err)
	}
	if r.unread != nil && r.unread() {
		return checklists.Release(err) // not the item's fault
	}
	return err
}

// tailOf keeps the end of what is written.
type tailOf struct {
	bytes.Buffer
	most int
}

func (t *tailOf) Write(b []byte) (int, error) {
	t.Buffer.Write(b)
	if over := t.Len() - t.most; over > 0 {
		t.Next(over)
	}
	return len(b), nil
}

// screen shares a terminal between a line that is drawn again and again and what
// else is written.
type screen struct {
	mu   sync.Mutex
	out  io.Writer
	live bool // there is such a line
	text string
}

// show draws the line.
func (s *screen) show(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = text
	fmt.Fprintf(s.out, "\r%s\x1b[K", text)
}

// clear takes the line away.
func (s *screen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.text != "" {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
	s.text = ""
}

// through returns a writer to w that many may use at once, and that leaves the line
// below what is written.
func (s *screen) through(w io.Writer) io.Writer { return &passed{s, w} }

type passed struct {
	screen *screen
	w      io.Writer
}

func (p *passed) Write(b []byte) (int, error) {
	s := p.screen
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.text == "" {
		return p.w.Write(b)
	}
	fmt.Fprint(s.out, "\r\x1b[K")
	n, err := p.w.Write(b)
	if bytes.HasSuffix(b, []byte("\n")) {
		fmt.Fprint(s.out, s.text)
	}
	return n, err
}

// watchWork draws how far a list is, with the rate of the last ten seconds: the one
// that is kept is of the last full minute, and a worker's first has not passed.
func watchWork(ctx context.Context, s *checklists.Store, list string, screen *screen) {
	type sample struct {
		at   time.Time
		done int64
	}
	var samples []sample
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	for ctx.Err() == nil {
		if p, err := s.Progress(ctx, list); err == nil { // of errors the worker tells
			samples = append(samples, sample{time.Now(), p.Done})
			samples = samples[max(len(samples)-11, 0):]
			first, last := samples[0], samples[len(samples)-1]
			p.Rate, p.ETA = 0, 0
			if n := last.done - first.done; n > 0 {
				p.Rate = float64(n) / last.at.Sub(first.at).Seconds()
				p.ETA = time.Duration(float64(p.Left) / p.Rate * float64(time.Second))
			}
			screen.show(progressWords(p))
		}
		select {
		case <-ctx.Done():
		case <-ticks.C:
		}
	}
}
