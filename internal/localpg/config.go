package localpg

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/howdah-db/howdah/fault"
)

// Config says where a private server lives. The zero Config is right for a
// command on one machine.
type Config struct {
	// Dir is the state directory. Default: $HOWDAH_STATE_DIR; else
	// /var/lib/howdah for root, $XDG_STATE_HOME/howdah or
	// ~/.local/state/howdah for everybody else.
	Dir string
	// BinDir holds initdb and postgres. Default: the search that doc.go describes.
	BinDir string
	// Settings are given to PostgreSQL as -c name=value and win over our own.
	// They only matter when this Start is the one that starts the server.
	Settings map[string]string
	// Tied makes a server that this process started end with this process, even
	// by kill -9. Only Linux can promise the latter; elsewhere the next Start
	// finds the orphan and reuses it.
	Tied bool
	// Say is told one line for people before anything that takes long (creating
	// the cluster, a download). Nil: nobody is told.
	Say func(string)
	// Log gets starts, stops and repairs. Default: slog.Default().
	Log *slog.Logger

	places   *places       // where to look for binaries; tests replace it
	accounts []string      // who may run the server for root; tests replace it
	others   time.Duration // that they get to leave a tied server; 0 = othersPatience; tests replace it
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		dir, err := defaultDir(os.Geteuid(), os.Getenv)
		if err != nil {
			return c, err
		}
		c.Dir = dir
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return c, err
	}
	c.Dir = dir
	if c.Say == nil {
		c.Say = func(string) {}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.places == nil {
		c.places = usualPlaces()
	}
	if c.accounts == nil {
		c.accounts = []string{"postgres", "nobody"}
	}
	c.Settings = maps.Clone(c.Settings)
	return c, nil
}

func defaultDir(uid int, getenv func(string) string) (string, error) {
	if dir := getenv("HOWDAH_STATE_DIR"); dir != "" {
		return dir, nil
	}
	// The server runs as another user then, to whom root's home is closed.
	if uid == 0 {
		return "/var/lib/howdah", nil
	}
	if dir := xdg(getenv, "XDG_STATE_HOME", ".local", "state"); dir != "" {
		return dir, nil
	}
	return "", fmt.Errorf("no state directory: neither HOWDAH_STATE_DIR nor HOME is set: %w", fault.Invalid)
}

// CacheDir returns where [Fetch] keeps the binaries it downloads:
// /var/cache/howdah for root, $XDG_CACHE_HOME/howdah or ~/.cache/howdah for
// everybody else. It is empty if there is no such place.
func CacheDir() string { return cacheDir(os.Geteuid(), os.Getenv) }

func cacheDir(uid int, getenv func(string) string) string {
	if uid == 0 {
		return "/var/cache/howdah"
	}
	return xdg(getenv, "XDG_CACHE_HOME", ".cache")
}

// xdg returns howdah's directory in the one that name says, or else in the one
// below the home directory; empty if there is neither. The XDG specification
// says that a relative path is to be ignored.
func xdg(getenv func(string) string, name string, below ...string) string {
	if dir := getenv(name); filepath.IsAbs(dir) {
		return filepath.Join(dir, "howdah")
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, filepath.Join(below...), "howdah")
	}
	return ""
}

// Platform names this machine as the packages do: linux-x64, darwin-arm64.
func Platform() string {
	return runtime.GOOS + "-" + strings.Replace(runtime.GOARCH, "amd64", "x64", 1)
}

// durable reports whether the caller wants what is written to survive a crash
// of the machine: the answer is yes unless fsync was switched off.
func (c Config) durable() bool {
	switch strings.ToLower(c.Settings["fsync"]) {
	case "off", "false", "no", "0":
		return false
	}
	return true
}

// arguments are those of the server: one that is reached through the socket
// directory and by nothing else, then the caller's settings, which win.
func (c Config) arguments(data, socketDir string) []string {
	args := []string{
		"-D", data,
		"-c", "listen_addresses=",
		"-c", "unix_socket_directories=" + quoteListElement(socketDir),
		"-c", "unix_socket_permissions=0700",
		"-c", "port=5432",
		"-c", "logging_collector=off",
		"-c", "log_destination=stderr",
	}
	for _, name := range slices.Sorted(maps.Keys(c.Settings)) {
		args = append(args, "-c", name+"="+c.Settings[name])
	}
	return args
}

// quoteListElement protects commas and spaces in a directory's name, which
// otherwise would separate several directories.
func quoteListElement(s string) string {
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
}
