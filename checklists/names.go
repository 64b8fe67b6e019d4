package checklists

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// indexNames are the names of a table's indexes and of its constraint, by the name
// that migrations use for them: the original's, and for tables of another name
// names of their own, because in one schema there can be no two of a name.
func indexNames(table pgx.Identifier) map[string]pgx.Identifier {
	names := map[string]pgx.Identifier{}
	own := table[max(len(table)-1, 0):]
	for name, suffix := range map[string]string{"list_pk": "_pkey", "lists_due": "_due", "lists_lease": "_lease", "lists_priority": "_priority"} {
		names[name] = pgx.Identifier{name}
		if len(own) > 0 && own[0] != "lists" {
			names[name] = pgx.Identifier{shortened(own[0], maxIdentifier-len(suffix)) + suffix}
		}
	}
	return names
}

// maxIdentifier is what PostgreSQL keeps of a name.
const maxIdentifier = 63

// shortened is a name of at most n bytes that no other is shortened to.
func shortened(name string, n int) string {
	if len(name) <= n {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	mark := "_" + hex.EncodeToString(sum[:6])
	return strings.ToValidUTF8(name[:n-len(mark)], "") + mark
}

// namedFiles are migrations in which the names of indexes are those of the table.
type namedFiles struct{ fs.FS }

var indexName = regexp.MustCompile(`\b(list_pk|lists_due|lists_lease|lists_priority)\b`)

// ReadFile implements fs.ReadFileFS.
func (f namedFiles) ReadFile(name string) ([]byte, error) {
	text, err := fs.ReadFile(f.FS, name)
	return indexName.ReplaceAll(text, []byte("{{.$1}}")), err
}
