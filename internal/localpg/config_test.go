package localpg_test

import (
	"errors"
	"testing"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/localpg"
)

func TestDefaultDirectories(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name         string
		uid          int
		env          map[string]string
		state, cache string
	}{
		{"root", 0, map[string]string{"HOME": "/root", "XDG_STATE_HOME": "/root/s"}, "/var/lib/howdah", "/var/cache/howdah"},
		{"home", 1000, map[string]string{"HOME": "/home/a"}, "/home/a/.local/state/howdah", "/home/a/.cache/howdah"},
		{"xdg", 1000, map[string]string{"HOME": "/home/a", "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c"}, "/s/howdah", "/c/howdah"},
		{"relative xdg", 1000, map[string]string{"HOME": "/home/a", "XDG_STATE_HOME": "s"}, "/home/a/.local/state/howdah", "/home/a/.cache/howdah"},
		{"told", 0, map[string]string{"HOWDAH_STATE_DIR": "/data"}, "/data", "/var/cache/howdah"},
		{"nowhere", 1000, nil, "", ""},
	} {
		getenv := func(name string) string { return test.env[name] }
		state, err := localpg.DefaultDir(test.uid, getenv)
		if state != test.state || errors.Is(err, fault.Invalid) != (test.state == "") {
			t.Errorf("%s: state directory %q, %v, want %q", test.name, state, err, test.state)
		}
		if cache := localpg.CacheDirOf(test.uid, getenv); cache != test.cache {
			t.Errorf("%s: cache directory %q, want %q", test.name, cache, test.cache)
		}
	}
}
