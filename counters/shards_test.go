package counters_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
)

// statements are the texts of package counters that hold SQL, and where they are. What
// is put in between by Go is there as it is written.
func statements(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	files := token.NewFileSet()
	sources, err := fs.Glob(os.DirFS("."), "*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range sources {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(files, name, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		source := func(n ast.Node) string {
			return string(text[files.Position(n.Pos()).Offset:files.Position(n.End()).Offset])
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BinaryExpr: // a text in parts
				if n.Op == token.ADD && strings.Contains(source(n), "`") {
					all[files.Position(n.Pos()).String()] = source(n)
					return false
				}
			case *ast.BasicLit:
				if n.Kind == token.STRING && strings.HasPrefix(n.Value, "`") {
					all[files.Position(n.Pos()).String()] = n.Value
				}
			}
			return true
		})
	}
	return all
}

// Statements work on a table that is distributed by its key, too: what is there is merged
// without asking other rows, and rows are changed by their keys.
func TestStatementsCanBeDistributed(t *testing.T) {
	t.Parallel()
	merge := regexp.MustCompile(`(?s)DO UPDATE(.*)`)
	change := regexp.MustCompile(`(?s)(DELETE FROM|UPDATE) (\{table\}|\{ping\}|howdah\.counter_slots)(.*)`)
	byKey := regexp.MustCompile(`\bkey = |t\.join|l\.join|\.where\b`)
	merges, changes := 0, 0
	for where, sql := range statements(t) {
		if found := merge.FindStringSubmatch(sql); found != nil {
			merges++
			if strings.Contains(found[1], "SELECT") {
				t.Errorf("%s: a subquery in DO UPDATE: %s", where, found[1])
			}
		}
		if found := change.FindStringSubmatch(sql); found != nil {
			changes++
			if !byKey.MatchString(found[3]) {
				t.Errorf("%s: no condition on the key: %s", where, found[0])
			}
		}
	}
	if merges < 6 || changes < 6 {
		t.Errorf("only %d statements that merge and %d that change rows were found", merges, changes)
	}
}
