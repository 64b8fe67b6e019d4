package triflehttp

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
)

// request is a request and where its answer goes.
type request struct {
	*http.Request
	w     http.ResponseWriter
	limit int64 // bytes of the body, unpacked
}

// body reads the JSON object of the body into v.
func (r *request) body(v any) error {
	text, err := r.text()
	if err != nil {
		return err
	}
	if err := pg.CheckJSON("body", text); err != nil { // encoding/json would read another text than was sent
		return badRequest("%v", err)
	}
	if bytes.Equal(bytes.TrimSpace(text), []byte("null")) {
		return badRequest("body: null; want an object")
	}
	if err := json.Unmarshal(text, v); err != nil {
		return badRequest("body: %v", err)
	}
	return nil
}

// text is the body without its Content-Encoding.
func (r *request) text() ([]byte, error) {
	body := io.Reader(http.MaxBytesReader(r.w, r.Body, r.limit))
	switch encoding := strings.ToLower(r.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
	case "gzip":
		packed, err := gzip.NewReader(body)
		if err != nil {
			return nil, r.unread(err)
		}
		body = packed
	default:
		return nil, &refusal{status: http.StatusUnsupportedMediaType, detail: "Content-Encoding " + encoding + "; want gzip, or none"}
	}
	text, err := io.ReadAll(io.LimitReader(body, r.limit+1)) // what is small may unpack to much
	if err == nil && int64(len(text)) > r.limit {
		err = &http.MaxBytesError{Limit: r.limit}
	}
	if err != nil {
		return nil, r.unread(err)
	}
	return text, nil
}

// unread is a body that could not be read to its end: its sender's fault. The rest of
// it is left where it is, so that no other request can follow it.
func (r *request) unread(err error) error {
	r.w.Header().Set("Connection", "close")
	var tooLong *http.MaxBytesError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &tooLong):
		return &refusal{status: http.StatusRequestEntityTooLarge, detail: err.Error()}
	case errors.As(err, &timeout) && timeout.Timeout():
		return &refusal{status: http.StatusRequestTimeout}
	}
	return badRequest("body: %v", err)
}

// frame is what a series is asked by.
type frame struct {
	Key         *string `json:"key"` // none is the system's
	From        string  `json:"from"`
	To          string  `json:"to"`
	Granularity string  `json:"granularity"`
}

func frameOf(query url.Values) frame {
	f := frame{From: query.Get("from"), To: query.Get("to"), Granularity: query.Get("granularity")}
	if query.Has("key") {
		f.Key = new(query.Get("key"))
	}
	return f
}

// query reads a frame. What is missing or cannot be read is 400.
func (f frame) query() (q counters.Query, err error) {
	q.Key = counters.SystemKey
	if f.Key != nil {
		q.Key = *f.Key
	}
	if q.Key == "" {
		return q, badRequest("key: empty")
	}
	if q.From, err = parseTime("from", f.From); err != nil {
		return q, err
	}
	if q.To, err = parseTime("to", f.To); err != nil {
		return q, err
	}
	if q.Granularity, err = counters.ParseGranularity(f.Granularity); err != nil {
		return q, badRequest("%v", err)
	}
	return q, nil
}

func parseTime(field, text string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return at, badRequest("%s: %q; want RFC 3339, such as 2025-05-06T09:15:00Z", field, text)
	}
	return at, nil
}
