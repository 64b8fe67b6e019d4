package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Memory is the row of what the howdah binary needs at most while it imports and
// exports: it must not grow with the input.
type Memory struct{}

// Title implements Row.
func (Memory) Title() string { return "peak memory" }

// Measure implements Row.
func (Memory) Measure(ctx context.Context, lab *Lab) (results []Result, err error) {
	err = withHowdah(ctx, lab, func(h howdah) error {
		results, err = measureMemory(ctx, lab, h)
		return err
	})
	return results, err
}

// withHowdah builds the program, for as long as fn does something with it.
func withHowdah(ctx context.Context, lab *Lab, fn func(howdah) error) (err error) {
	lab.Say("building howdah")
	dir, err := os.MkdirTemp("", "howdah-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary := filepath.Join(dir, "howdah")
	build := exec.CommandContext(ctx, "go", "build", "-C", "..", "-o", binary, "./cmd/howdah")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return fn(howdah{binary: binary, url: lab.URL})
}

func measureMemory(ctx context.Context, lab *Lab, h howdah) ([]Result, error) {
	idle, err := h.idle(ctx)
	if err != nil {
		return nil, err
	}
	imports := []Figure{{"howdah serve, idle", idle, "MiB"}}
	exports := slices.Clone(imports)
	for _, size := range []int{lab.N(1_000_000, 100_000), lab.N(5_000_000, 500_000)} {
		name := grouped(size) + " items"
		lab.Say("importing %s", name)
		mib, err := h.importing(ctx, size)
		if err != nil {
			return nil, err
		}
		imports = append(imports, Figure{name, mib, "MiB"})
		lab.Say("exporting %s", name)
		if mib, err = h.exporting(ctx, size); err != nil {
			return nil, err
		}
		exports = append(exports, Figure{name, mib, "MiB"})
	}
	result := func(work string, figures []Figure) Result {
		growth := figures[2].Value / figures[1].Value
		return Result{Work: work, Figures: figures, Of: "growth", Value: growth, Min: growth, Max: growth, Bar: 1.2, AtMost: true}
	}
	return []Result{result("howdah checklists import", imports), result("howdah checklists export", exports)}, nil
}

// howdah is the program, on the database of the row.
type howdah struct{ binary, url string }

func (h howdah) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.binary, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+h.url) // arguments are there for all to see
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// idle returns the peak of a server that has started and has nothing to do.
func (h howdah) idle(ctx context.Context) (float64, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cmd := h.command(ctx, "serve", "--listen", "127.0.0.1:0", "--quiet")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	return peak(cmd, func() error {
		defer stop()
		line, err := bufio.NewReader(out).ReadString('\n') // it says where it serves when it does
		if err == nil && !strings.Contains(line, "serves on") {
			err = fmt.Errorf("howdah serve: %q", line)
		}
		return err
	})
}

// importing returns the peak of an import of n items.
func (h howdah) importing(ctx context.Context, n int) (float64, error) {
	cmd := h.command(ctx, "checklists", "import", fmt.Sprint(list, n), "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	return peak(cmd, func() error {
		buffered := bufio.NewWriterSize(in, 64<<10)
		for i := range n {
			// In another order than the index's: 7,368,787 is prime, so each item comes once.
			if _, err := buffered.WriteString(itemName(i*7_368_787%n) + "\n"); err != nil {
				break // it has ended; its error says why
			}
		}
		return errors.Join(buffered.Flush(), in.Close())
	})
}

// exporting returns the peak of an export of the n items that were imported.
func (h howdah) exporting(ctx context.Context, n int) (float64, error) {
	cmd := h.command(ctx, "checklists", "export", fmt.Sprint(list, n))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	return peak(cmd, func() error {
		lines := 0
		for scan := bufio.NewScanner(out); scan.Scan(); lines++ {
		}
		if lines != n {
			return fmt.Errorf("howdah checklists export: %d of %d items", lines, n)
		}
		return nil
	})
}

// peak runs cmd, does what its pipes need, and returns the most memory, in MiB,
// that it had in use at a time.
func peak(cmd *exec.Cmd, meanwhile func() error) (mib float64, err error) {
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	// The rusage that Wait returns counts on Linux from before the exec, when the
	// child was this process. So look at the kernel's own high-water mark until
	// the end; what comes in the last moment is not missed by much.
	stop, stopped := make(chan struct{}), make(chan float64)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var most float64
		for {
			most = max(most, highWater(cmd.Process.Pid))
			select {
			case <-tick.C:
			case <-stop:
				stopped <- most
				return
			}
		}
	}()
	err = meanwhile()
	waited := cmd.Wait()
	close(stop)
	mib = <-stopped
	if waited != nil && !errors.Is(waited, context.Canceled) {
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args[1:], " "), waited, complaints.String())
	}
	if mib == 0 && err == nil { // not Linux
		mib = maxRSS(cmd.ProcessState)
	}
	return mib, err
}

// highWater returns the VmHWM of a process in MiB, 0 where there is none.
func highWater(pid int) (mib float64) {
	var kib float64
	_, _ = fmt.Sscan(fieldOf(fmt.Sprintf("/proc/%d/status", pid), "VmHWM"), &kib)
	return kib / 1024
}

func maxRSS(state *os.ProcessState) float64 {
	usage, ok := state.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return float64(usage.Maxrss) / (1 << 20) // bytes there
	}
	return float64(usage.Maxrss) / 1024
}
