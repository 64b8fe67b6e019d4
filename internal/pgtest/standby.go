package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/internal/localpg"
)

// Pair starts a server and a hot standby of it: the same directory twice, taken
// while the server was down, so that no tool is needed that not every package of
// PostgreSQL brings along.
func Pair(t testing.TB) (primary, standby *localpg.Server) {
	t.Helper()
	return PairOf(t, map[string]string{"wal_level": "replica"}, func(string) {})
}

// PairOf is Pair with settings of its own, of what prepare has made at a URL; replication
// slots both servers then have, as if they were kept in step.
func PairOf(t testing.TB, settings map[string]string, prepare func(url string)) (primary, standby *localpg.Server) {
	t.Helper()
	first := Server(t, func(cfg *localpg.Config) { cfg.Settings = settings })
	prepare(first.URL())
	base := filepath.Join(t.TempDir(), "base")
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	if err := first.Stop(ctx); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatalf("pgtest: no standby: %v", err)
		}
	}
	must(clone(first.Dir(), base))
	again := func(cfg *localpg.Config) {
		must(clone(base, cfg.Dir))
		cfg.Settings = settings
	}
	primary = Server(t, again)
	standby = Server(t, func(cfg *localpg.Config) {
		again(cfg)
		c, err := pgx.ParseConfig(primary.URL())
		must(err)
		data := filepath.Join(cfg.Dir, "data")
		conninfo := fmt.Sprintf("primary_conninfo = 'host=%s port=%d user=%s password=%s'\n", c.Host, c.Port, c.User, c.Password)
		must(
			appendTo(filepath.Join(data, "postgresql.auto.conf"), conninfo),
			appendTo(filepath.Join(data, "standby.signal"), ""),
			own(first.Data(), data))
	})
	return primary, standby
}

// Replayed returns when the standby has what the primary had at the call.
func Replayed(t testing.TB, primary, standby *pgxpool.Pool) {
	t.Helper()
	var lsn string
	if err := primary.QueryRow(t.Context(), `SELECT pg_current_wal_flush_lsn()::text`).Scan(&lsn); err != nil {
		t.Fatal(err)
	}
	UntilSQL(t, standby, "the standby has "+lsn, `SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn`, lsn)
}

// clone copies a state directory, without what belongs to a running server.
func clone(from, to string) error {
	secret, err := os.ReadFile(filepath.Join(from, "password"))
	if err != nil {
		return err
	}
	was, is := filepath.Join(from, "data"), filepath.Join(to, "data")
	if err := errors.Join(os.MkdirAll(to, 0o711), os.CopyFS(is, os.DirFS(was))); err != nil {
		return err
	}
	return errors.Join(
		os.Chmod(is, 0o700),
		os.WriteFile(filepath.Join(to, "password"), secret, 0o600),
		own(was, is))
}

// own gives a tree to the owner of another: servers refuse to run as root.
func own(like, dir string) error {
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
