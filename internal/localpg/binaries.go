//go:build unix

package localpg

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// binaries are the programs of one PostgreSQL.
type binaries struct {
	dir     string
	version string // 15.14, 19beta1
	major   int
}

func (b binaries) initdb() string   { return filepath.Join(b.dir, "initdb") }
func (b binaries) postgres() string { return filepath.Join(b.dir, "postgres") }

// places is where binaries are looked for.
type places struct {
	fixed string   // $HOWDAH_PG_BIN: if set, nothing else counts
	path  string   // $PATH
	usual []string // glob patterns
	cache string   // what Fetch fills
}

func usualPlaces() *places {
	return &places{
		fixed: os.Getenv("HOWDAH_PG_BIN"),
		path:  os.Getenv("PATH"),
		usual: []string{
			"/usr/lib/postgresql/*/bin",       // Debian, Ubuntu
			"/usr/pgsql-*/bin",                // the PostgreSQL project's RPMs
			"/usr/libexec/postgresql*",        // Alpine
			"/opt/homebrew/opt/postgres*/bin", // Homebrew on Apple silicon
			"/usr/local/opt/postgres*/bin",    // Homebrew on Intel
			"/home/linuxbrew/.linuxbrew/opt/postgres*/bin",
			"/Applications/Postgres.app/Contents/Versions/*/bin",
			"/usr/local/pgsql/bin", // built from source
		},
		cache: CacheDir(),
	}
}

// program finds an executable on the search path.
func (p *places) program(name string) string {
	for _, dir := range filepath.SplitList(p.path) {
		if !filepath.IsAbs(dir) {
			continue // like os/exec: what lies in the working directory is not ours to run
		}
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	return ""
}

// directories yields where binaries may be, best first.
func (p *places) directories(ctx context.Context, yield func(string) bool) {
	if file := p.program("postgres"); file != "" {
		// A link on PATH leads to the directory that holds initdb too.
		if real, err := filepath.EvalSymlinks(file); err == nil && !yield(filepath.Dir(real)) {
			return
		}
	}
	if file := p.program("pg_config"); file != "" {
		out, err := exec.CommandContext(ctx, file, "--bindir").Output()
		if dir := strings.TrimSpace(string(out)); err == nil && dir != "" && !yield(dir) {
			return
		}
	}
	var found []string
	for _, pattern := range p.usual {
		dirs, _ := filepath.Glob(pattern) // the patterns are ours and well formed
		found = append(found, dirs...)
	}
	slices.SortStableFunc(found, func(a, b string) int { return cmp.Compare(numberIn(b), numberIn(a)) })
	for _, dir := range found {
		if !yield(dir) {
			return
		}
	}
	if dir := fetched(p.cache); dir != "" {
		yield(dir)
	}
}

// numberIn returns the last number in a path, which in all the usual
// directories is the major version.
func numberIn(path string) int {
	fields := strings.FieldsFunc(path, func(r rune) bool { return r < '0' || r > '9' })
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(fields[len(fields)-1])
	return n
}

// find returns the first usable PostgreSQL for the account; if data holds a
// cluster already, the first one of its major version. What is not there at all
// is fetched.
func find(ctx context.Context, cfg Config, as account, data string) (binaries, error) {
	major, err := clusterVersion(data)
	if err != nil {
		return binaries{}, err
	}
	fixed := cmp.Or(cfg.BinDir, cfg.places.fixed)
	candidates := func(yield func(string) bool) {
		if fixed != "" {
			yield(fixed)
			return
		}
		cfg.places.directories(ctx, yield)
	}
	var refused []error  // why each was not taken
	var another binaries // the first that only had the wrong version
	for dir := range candidates {
		b, err := inspect(ctx, dir, as)
		switch {
		case err != nil:
			refused = append(refused, err)
		case major == 0 || b.major == major:
			return b, nil
		case another.dir == "":
			another = b
		}
	}
	switch {
	case ctx.Err() != nil:
		return binaries{}, context.Cause(ctx)
	case another.dir != "":
		return binaries{}, versionError(data, major, another)
	case fixed != "":
		return binaries{}, fmt.Errorf("no usable PostgreSQL in %s: %w", fixed, noPostgres(refused))
	}
	dir, err := cfg.places.fetch(ctx, Platform(), cfg.Say)
	if err != nil {
		return binaries{}, noPostgres(append(refused, err))
	}
	b, err := inspect(ctx, dir, as)
	if err == nil && major != 0 && b.major != major {
		err = versionError(data, major, b)
	}
	return b, err
}

// noPostgres is ErrNoPostgres with what was tried.
func noPostgres(tried []error) error {
	err := ErrNoPostgres
	for _, t := range tried {
		err = fmt.Errorf("%w; %w", err, t)
	}
	return err
}

func versionError(data string, major int, found binaries) error {
	return fmt.Errorf("%w: %s was made by PostgreSQL %d, and %s is PostgreSQL %d; nothing was changed. "+
		"Point HOWDAH_PG_BIN at the programs of the former, or upgrade the data with pg_upgrade",
		ErrVersion, data, major, found.dir, found.major)
}

// inspect tells whether dir holds a PostgreSQL that the account can run.
func inspect(ctx context.Context, dir string, as account) (binaries, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return binaries{}, err
	}
	b := binaries{dir: dir}
	for _, file := range []string{b.initdb(), b.postgres()} {
		info, err := os.Stat(file)
		if err != nil {
			return b, err
		}
		if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return b, fmt.Errorf("%s is not a program", file)
		}
	}
	if err := as.reach(dir); err != nil {
		return b, err
	}
	out, err := exec.CommandContext(ctx, b.postgres(), "--version").Output()
	if err != nil {
		return b, fmt.Errorf("%s --version: %w", b.postgres(), err)
	}
	b.version, b.major = parseVersion(string(out))
	if b.major < oldest {
		return b, fmt.Errorf("%s is %s, too old", b.postgres(), strings.TrimSpace(string(out)))
	}
	return b, nil
}

// parseVersion reads "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)".
func parseVersion(s string) (version string, major int) {
	_, rest, _ := strings.Cut(s, ") ")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return "", 0
	}
	version = fields[0]
	digits := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(version)
	}
	major, _ = strconv.Atoi(version[:digits])
	return version, major
}
