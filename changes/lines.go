package changes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Lines returns a Handler that writes each change to w as a line of JSON, and has
// them flushed, where w has a method Flush, before the consumer moves on: at least
// once. The lines of a batch are one Write. Of a line that was cut off by an error
// the rest is written first when w takes something again.
func Lines(w io.Writer) Handler {
	var mu sync.Mutex
	var rest []byte // of a line that was begun
	return func(_ context.Context, _ pgx.Tx, cs []Change) error {
		text, err := jsonLines(cs)
		if err != nil {
			return fmt.Errorf("changes: lines: %w", err)
		}
		mu.Lock()
		defer mu.Unlock()
		text = append(rest, text...)
		n, err := w.Write(text)
		if err == nil && n < len(text) {
			err = io.ErrShortWrite
		}
		if n > 0 {
			rest = begun(text, n)
		}
		if f, ok := w.(interface{ Flush() error }); ok && err == nil {
			err = f.Flush()
		}
		if err != nil {
			return fmt.Errorf("changes: lines: %w", pg.Foreign(err))
		}
		return nil
	}
}

// begun is what is missing of the line in which the first n bytes of text end.
func begun(text []byte, n int) []byte {
	if text[n-1] == '\n' {
		return nil
	}
	line, _, _ := bytes.Cut(text[n:], []byte("\n"))
	return append(bytes.Clone(line), '\n')
}

// jsonLines is the changes as JSON, a line each.
func jsonLines(cs []Change) ([]byte, error) {
	var b bytes.Buffer
	for i := range cs {
		if err := writeJSON(&b, &cs[i]); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// jsonText is a change as JSON.
func jsonText(c *Change) (string, error) {
	var b bytes.Buffer
	err := writeJSON(&b, c)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// writeJSON writes v and an end of line. JSON of the log goes through as it is:
// nothing is escaped for the sake of HTML.
func writeJSON(b *bytes.Buffer, v any) error {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
