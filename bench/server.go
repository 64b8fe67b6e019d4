package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/internal/localpg"
)

// settings are those of the server we start; what is not here is PostgreSQL's
// default, so it is durable.
var settings = map[string]string{
	// No checkpoint and no vacuum in the middle of a round: rows vacuum between them.
	"autovacuum":         "off",
	"checkpoint_timeout": "1h",
	"max_wal_size":       "4GB",
	// The largest tables fit, so that growth is that of the work and not of misses.
	"shared_buffers": "512MB",
}

// startServer returns the URL of BENCH_DATABASE_URL, or of a server that it
// starts, and what stops and removes that.
func startServer(ctx context.Context) (url string, stop func() error, err error) {
	if url := os.Getenv("BENCH_DATABASE_URL"); url != "" {
		return url, func() error { return nil }, nil
	}
	// Not in the directory for temporary files, which may be in memory: there,
	// durable costs nothing.
	parent := "/var/tmp"
	if _, err := os.Stat(parent); err != nil {
		parent = os.TempDir()
	}
	dir, err := os.MkdirTemp(parent, "howdah-bench-")
	if err != nil {
		return "", nil, err
	}
	remove := func() error { return os.RemoveAll(dir) }
	// The server of root is another user's process and has to pass through.
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", nil, errors.Join(err, remove())
	}
	server, err := localpg.Start(ctx, localpg.Config{
		Dir:      filepath.Join(dir, "pg"),
		Settings: settings,
		Tied:     true,
		Log:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return "", nil, errors.Join(err, remove())
	}
	return server.URL(), func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return errors.Join(server.Stop(ctx), remove())
	}, nil
}

// Machine is what figures depend on.
type Machine struct {
	CPU        string            `json:"cpu"`
	Cores      int               `json:"cores"`
	MemoryGiB  float64           `json:"memory_gib,omitempty"`
	OS         string            `json:"os"`
	Go         string            `json:"go"`
	PostgreSQL string            `json:"postgresql"`
	Settings   map[string]string `json:"settings"` // of the server
	Load       float64           `json:"load"`     // others' work when the run began: processes of the last minute
}

// describe looks at this machine and its server, and refuses one that would
// forget what it has acknowledged.
func describe(ctx context.Context, server string) (Machine, error) {
	m := Machine{
		CPU:      orUnknown(fieldOf("/proc/cpuinfo", "model name")),
		Cores:    runtime.NumCPU(),
		OS:       runtime.GOOS + "/" + runtime.GOARCH,
		Go:       runtime.Version(),
		Settings: map[string]string{},
	}
	var kib float64
	if _, err := fmt.Sscan(fieldOf("/proc/meminfo", "MemTotal"), &kib); err == nil {
		m.MemoryGiB = kib / (1 << 20)
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(load), &m.Load)
	}
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return m, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	version, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), " ")
	m.PostgreSQL = version
	for _, name := range []string{
		"fsync", "synchronous_commit", "full_page_writes", "shared_buffers",
		"max_wal_size", "checkpoint_timeout", "autovacuum",
	} {
		var value string
		if err := conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&value); err != nil {
			return m, err
		}
		m.Settings[name] = value
	}
	if m.Settings["fsync"] == "off" || m.Settings["synchronous_commit"] == "off" {
		return m, errors.New("the server has fsync or synchronous_commit off; figures are of durable ones")
	}
	return m, nil
}

// fieldOf returns what follows the first "name:" in a file of /proc.
func fieldOf(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
