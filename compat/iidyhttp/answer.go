package iidyhttp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"unicode"
)

// answer is what went well: a body in the form of the request.
type answer struct {
	status int
	body   [][]byte
	last   string // of a page
}

// count answers "ADDED 2" or {"added":2}.
func (r *request) count(status int, verb string, n int64) *answer {
	text := fmt.Appendf(nil, "%s %d\n", strings.ToUpper(verb), n)
	if r.json {
		text = fmt.Appendf(nil, "{%q:%d}\n", verb, n)
	}
	return &answer{status: status, body: [][]byte{text}}
}

func (r *request) answer(a *answer) {
	if fitsHeader(a.last) {
		r.w.Header().Set("X-IIDY-Last-Item", a.last)
	}
	r.write(a.status, a.body...)
}

// fitsHeader reports whether a client would get item back from a header as it is:
// control bytes have no place there, and space around a value is none of it.
func fitsHeader(item string) bool {
	return item != "" && strings.TrimSpace(item) == item && !strings.ContainsFunc(item, unicode.IsControl)
}

func (r *request) write(status int, body ...[]byte) {
	r.w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.json {
		r.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	} else {
		r.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	r.w.WriteHeader(status)
	for _, part := range body {
		if _, err := r.w.Write(part); err != nil {
			return // the client is gone
		}
	}
}

// appendJSON appends v, which marshals without an error, and a newline.
func appendJSON(to *bytes.Buffer, v any) {
	e := json.NewEncoder(to)
	e.SetEscapeHTML(false)
	e.Encode(v)
}

// refusal is an answer that says why not.
type refusal struct {
	status int
	text   string
}

// Error returns the text.
func (r *refusal) Error() string { return r.text }

func badRequest(format string, args ...any) *refusal {
	return &refusal{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// refusal says why an operation failed. The original begins so when an add fails.
func (a *api) refusal(ctx context.Context, op operation, t target, req *request, err error) *refusal {
	var already *refusal
	if errors.As(err, &already) {
		return already
	}
	status, header, text := a.cfg.Explain(ctx, "iidy-"+op.verb, err)
	maps.Copy(req.w.Header(), header)
	return &refusal{status, trouble(op.verb, t) + text}
}

func trouble(verb string, t target) string {
	if t.batch {
		return "Error trying to " + verb + " list items: "
	}
	return "Error trying to " + verb + " list item: "
}

// Refuse answers a request that the server around these routes does not let through
// in their form: text, or JSON by the request's Content-Type.
func Refuse(w http.ResponseWriter, r *http.Request, status int, text string) {
	req := &request{Request: r, w: w, json: isJSON(r.Header.Get("Content-Type"))}
	req.refuse(&refusal{status, text})
}

func (r *request) refuse(no *refusal) {
	var body bytes.Buffer
	if r.json {
		appendJSON(&body, map[string]string{"error": no.text})
	} else {
		body.WriteString(no.text + "\n")
	}
	r.write(no.status, body.Bytes())
}
