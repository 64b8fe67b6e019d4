package checklists

import (
	"regexp"
	"strings"

	"github.com/howdah-db/howdah/pg"
)

// comment is the statement that gives the table a comment.
func (s *Store) comment(text string) string {
	if text == "" {
		return s.sql(`COMMENT ON TABLE {lists} IS NULL`)
	}
	return s.sql(`COMMENT ON TABLE {lists} IS `) + pg.Literal(text)
}

// note is the first line of an adopted table's comment: what an undo has to know.
// It follows the table wherever that goes.
type note struct {
	found, ready bool
	set          []string // storage parameters
	before       string   // the table's own comment
}

var noteLine = regexp.MustCompile(`^(Being adopted|Adopted) by howdah(?:, which set ([a-z_, ]+))?\.(?:\n|$)`)

func readNote(comment string) note {
	m := noteLine.FindStringSubmatch(comment)
	if m == nil {
		return note{before: comment}
	}
	n := note{found: true, ready: m[1] == "Adopted", before: comment[len(m[0]):]}
	if m[2] != "" {
		n.set = strings.Split(m[2], ", ")
	}
	return n
}

func (n note) String() string {
	text := "Being adopted by howdah"
	if n.ready {
		text = "Adopted by howdah"
	}
	if len(n.set) > 0 {
		text += ", which set " + strings.Join(n.set, ", ")
	}
	text += "."
	if n.before != "" {
		text += "\n" + n.before
	}
	return text
}
