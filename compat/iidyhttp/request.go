package iidyhttp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/howdah-db/howdah/pg"
)

// request is a request in the form that its Content-Type chose, which is that of
// its answer too.
type request struct {
	*http.Request
	w     http.ResponseWriter
	json  bool
	query url.Values
	limit int64 // bytes of the body
}

// isJSON looks at the media type alone, whatever its case and parameters are.
func isJSON(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	return media == "application/json" && (err == nil || errors.Is(err, mime.ErrInvalidMediaParameter))
}

// items are those that the body names, read as they are asked for where it is
// text. What cannot be read is a refusal, or an Invalid error.
func (r *request) items() iter.Seq2[string, error] {
	if r.json {
		return r.objectItems
	}
	return r.textItems
}

// all are the items of the body.
func (r *request) all() (items []string, err error) {
	for item, err := range r.items() {
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

func (r *request) body() io.Reader { return http.MaxBytesReader(r.w, r.Body, r.limit) }

// textItems yields an item a line. As in the original white space around the
// whole text is none of any item; blank lines are nothing, and neither is a
// carriage return at the end of a line.
func (r *request) textItems(yield func(string, error) bool) {
	const maxLine = 1 << 20 // items are far shorter
	lines := bufio.NewScanner(r.body())
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	last, n := "", 0 // a line that may be the last
	for lines.Scan() {
		n++
		line := lines.Text()
		if strings.TrimSpace(line) == "" {
			continue
		}
		if last == "" {
			last = strings.TrimLeftFunc(line, unicode.IsSpace)
			continue
		}
		if !yield(last, nil) {
			return
		}
		last = line
	}
	err := lines.Err()
	switch {
	case errors.Is(err, bufio.ErrTooLong):
		yield("", badRequest("Error trying to parse list of items from request body: line %d is over %d bytes", n+1, maxLine))
	case err != nil:
		yield("", r.unread(err))
	case last != "":
		yield(strings.TrimRightFunc(last, unicode.IsSpace), nil)
	}
}

// objectItems yields the items of {"items":["a.txt"]}; without any, null or no
// field, there are none.
func (r *request) objectItems(yield func(string, error) bool) {
	bad := func(err error) {
		yield("", badRequest("Error trying to parse list of items from request body: %v", err))
	}
	text, err := io.ReadAll(r.body())
	if err != nil {
		yield("", r.unread(err))
		return
	}
	if err := pg.CheckJSON("JSON", text); err != nil { // encoding/json would store another name than was sent
		bad(err)
		return
	}
	if bytes.Equal(bytes.TrimSpace(text), []byte("null")) {
		bad(errors.New("null; want an object"))
		return
	}
	var object struct{ Items []*string }
	if err := json.Unmarshal(text, &object); err != nil {
		bad(err)
		return
	}
	for i, item := range object.Items {
		if item == nil {
			bad(fmt.Errorf("items[%d] is null; want a string", i))
			return
		}
		if !yield(*item, nil) {
			return
		}
	}
}

// unread is a body that could not be read to its end: its sender's fault. The
// rest of it is left where it is, so that no other request can follow it.
func (r *request) unread(err error) error {
	r.giveUp()
	var tooLong *http.MaxBytesError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &tooLong):
		return &refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("The body is over %d bytes.", tooLong.Limit)}
	case errors.As(err, &timeout) && timeout.Timeout():
		return &refusal{http.StatusRequestTimeout, "The body did not arrive in time."}
	}
	return badRequest("Cannot read the body: %v", err)
}

func (r *request) giveUp() { r.w.Header().Set("Connection", "close") }
