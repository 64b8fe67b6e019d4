package howdah_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/howdah-db/howdah"

// list runs go list and returns its lines.
func list(t *testing.T, args ...string) []string {
	t.Helper()
	look(t)
	out, err := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("go list %q: %v: %s", args, err, out)
	}
	return strings.Fields(string(out))
}

// look looks at every source: go test repeats a result it remembers while the
// files that a test looked at are as they were, and cannot see what go list reads.
func look(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && (strings.HasSuffix(path, ".go") || strings.HasPrefix(path, "go.")) {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ours are the packages of howdah that a package links, itself excepted, named
// from the root.
func ours(t *testing.T, pkg string) (names []string) {
	t.Helper()
	for _, dep := range list(t, "-deps", pkg) {
		if name, ok := strings.CutPrefix(dep, module+"/"); ok && "./"+name != pkg {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// modules are the modules of others that a package links.
func modules(t *testing.T, pkg string) []string {
	t.Helper()
	all := list(t, "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", pkg)
	slices.Sort(all)
	all = slices.Compact(all)
	return slices.DeleteFunc(all, func(path string) bool { return path == module })
}

// The arrows of ARCHITECTURE.md: what each layer may know.
func TestLayers(t *testing.T) {
	t.Parallel()
	layers := map[string][]string{
		"./fault":                    nil,
		"./pg":                       {"fault"},
		"./pg/adopt":                 {"fault", "pg"},
		"./pg/migrate":               {"fault", "pg"},
		"./changes":                  {"fault", "pg"},
		"./changes/kafka":            {"changes", "fault", "pg"},
		"./changes/logical":          {"fault", "pg"},
		"./changes/nats":             {"changes", "fault", "pg"},
		"./checklists":               {"fault", "pg", "pg/adopt"},
		"./counters":                 {"fault", "pg", "pg/adopt"},
		"./compat/iidyhttp":          {"checklists", "fault", "pg", "pg/adopt"},
		"./compat/triflehttp":        {"counters", "fault", "pg", "pg/adopt"},
		"./compat/pgstore":           {"checklists", "fault", "pg", "pg/adopt", "pg/migrate"},
		".":                          {"changes", "checklists", "counters", "fault", "pg", "pg/adopt", "pg/migrate"},
		"./httpapi":                  {"changes", "checklists", "compat/iidyhttp", "compat/triflehttp", "counters", "fault", "pg", "pg/adopt", "pg/migrate"},
		"./internal/localpg":         {"fault"},
		"./internal/pgtest":          {"fault", "internal/localpg"},
		"./internal/pgtest/golden":   {"changes", "fault", "pg"},
		"./internal/pgtest/services": {"changes", "checklists", "counters", "fault", "internal/localpg", "internal/pgtest", "pg", "pg/adopt", "pg/migrate"},
		"./cmd/howdah":               {"changes", "checklists", "compat/iidyhttp", "compat/triflehttp", "counters", "fault", "httpapi", "internal/localpg", "pg", "pg/adopt", "pg/migrate"},

		"./examples/accesslog": {"counters", "fault", "pg", "pg/adopt", "pg/migrate"},
	}
	for _, path := range list(t, "./...") {
		pkg := "." + strings.TrimPrefix(path, module)
		allowed, ok := layers[pkg]
		if !ok {
			t.Errorf("which layer is %s?", pkg)
		}
		for _, name := range ours(t, pkg) {
			if !slices.Contains(allowed, name) {
				t.Errorf("%s knows %s", pkg, name)
			}
		}
	}
}

// A service alone links pgx, what pgx brings, and nothing else; counters also exact
// decimals.
func TestAServiceAloneLinksLittle(t *testing.T) {
	t.Parallel()
	few := []string{
		"github.com/jackc/pgpassfile", "github.com/jackc/pgservicefile", "github.com/jackc/pgx/v5", "github.com/jackc/puddle/v2",
		"golang.org/x/sync", "golang.org/x/text",
	}
	exact := append(slices.Clone(few), "github.com/cockroachdb/apd/v3")
	for pkg, allowed := range map[string][]string{"./fault": nil, "./pg": few, "./changes": few, "./checklists": few, "./counters": exact} {
		for _, path := range modules(t, pkg) {
			if !slices.Contains(allowed, path) {
				t.Errorf("%s links %s", pkg, path)
			}
		}
	}
	for _, path := range modules(t, ".") {
		for _, edge := range []string{"danielgtaylor/huma", "spf13/cobra", "prometheus", "progressbar", "golang.org/x/term"} {
			if strings.Contains(path, edge) {
				t.Errorf("the library links %s, which is for the edges", path)
			}
		}
	}
}

// What needs a client of its own is linked by who imports it, with that client and not
// with the server its tests run.
func TestClientsAreLinkedByWhoImportsThem(t *testing.T) {
	t.Parallel()
	for pkg, allowed := range map[string][]string{
		".": nil, "./cmd/howdah": nil,
		"./changes/kafka":   {"github.com/twmb/franz-go", "github.com/twmb/franz-go/pkg/kmsg"},
		"./changes/logical": {"github.com/jackc/pglogrepl"},
		"./changes/nats":    {"github.com/nats-io/nats.go", "github.com/nats-io/nkeys", "github.com/nats-io/nuid"},
	} {
		for _, path := range modules(t, pkg) {
			if (strings.Contains(path, "nats-io") || strings.Contains(path, "twmb") || strings.Contains(path, "pglogrepl")) && !slices.Contains(allowed, path) {
				t.Errorf("%s links %s", pkg, path)
			}
		}
	}
}

// What is shipped holds nothing that is for tests.
func TestNoTestsAreShipped(t *testing.T) {
	t.Parallel()
	for _, dep := range list(t, "-deps", "./cmd/howdah") {
		if dep == "testing" || strings.HasPrefix(dep, module+"/internal/pgtest") {
			t.Errorf("cmd/howdah links %s", dep)
		}
	}
	for _, line := range list(t, "-f", `{{$p := .ImportPath}}{{range .Imports}}{{$p}}:{{.}} {{end}}`, "./...") {
		pkg, imported, _ := strings.Cut(line, ":")
		if strings.HasPrefix(imported, module+"/internal/pgtest") && !strings.HasPrefix(pkg, module+"/internal/pgtest") {
			t.Errorf("%s imports pgtest outside of its tests", pkg)
		}
	}
}

var statement = regexp.MustCompile(`\b(SELECT|INSERT|UPDATE|DELETE|TRUNCATE|CREATE|ALTER|DROP|WITH|COPY)\s+[A-Za-z("{*$1]`)

// SQL stands beside the method that runs it, in the services and pg: the façade
// and the edges hold none.
func TestNoSQLAtTheEdges(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"*.go", "httpapi/*.go", "cmd/howdah/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if call, ok := n.(*ast.KeyValueExpr); ok { // the examples of a help text are for people
					if key, ok := call.Key.(*ast.Ident); ok && key.Name == "Example" {
						return false
					}
				}
				if text, ok := n.(*ast.BasicLit); ok && text.Kind == token.STRING && statement.MatchString(text.Value) {
					t.Errorf("%s holds SQL: %s", name, text.Value)
				}
				return true
			})
		}
	}
}

// A test waits for what has to come, by a channel, a row or a notification, and never for
// a while: that is too short on a machine that is busy, and too long on any other.
func TestNoTestSleeps(t *testing.T) {
	t.Parallel()
	looked := 0
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		pgtest := strings.HasPrefix(filepath.ToSlash(path), "internal/pgtest/")
		if err != nil || !strings.HasSuffix(path, ".go") || !strings.HasSuffix(path, "_test.go") && !pgtest {
			return err
		}
		looked++
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if name, ok := n.(*ast.SelectorExpr); ok && name.Sel.Name == "Sleep" {
				if pkg, ok := name.X.(*ast.Ident); ok && pkg.Obj == nil { // a package, and no variable
					t.Errorf("%s sleeps", files.Position(n.Pos()))
				}
			}
			return true
		})
		return nil
	})
	if err != nil || looked < 100 {
		t.Errorf("looked at %d files, %v", looked, err)
	}
}

var advisory = regexp.MustCompile(`1752135524, (\d+)\)`)

// The advisory locks of howdah have a number each: two services that took the same
// one would keep each other waiting.
func TestAdvisoryLocksAreOfOneService(t *testing.T) {
	t.Parallel()
	of := map[string]string{}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || strings.HasSuffix(path, "_test.go") || !strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, ".sql") {
			return err
		}
		text, err := os.ReadFile(path)
		service, _, _ := strings.Cut(filepath.ToSlash(path), "/")
		for _, m := range advisory.FindAllStringSubmatch(string(text), -1) {
			if first := of[m[1]]; first != "" && first != service {
				t.Errorf("%s takes lock %s, which is of %s", path, m[1], first)
			}
			of[m[1]] = service
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(of) < 3 {
		t.Errorf("locks %v were found, want those of changes and checklists", of)
	}
}
