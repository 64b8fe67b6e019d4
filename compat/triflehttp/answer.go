package triflehttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// answer is what went well.
type answer struct {
	status int
	data   any
}

// refusal is an answer that says why not.
type refusal struct {
	status int
	detail string         // for the header; the body says as much as Trifle's does
	errors map[string]any // of the body, where it says more than the status
}

// Error returns the detail.
func (r *refusal) Error() string { return r.detail }

// badRequest is a request that cannot be read.
func badRequest(format string, args ...any) *refusal {
	return &refusal{status: http.StatusBadRequest, detail: fmt.Sprintf(format, args...)}
}

// unprocessable is a request that can be read, and not be done.
func unprocessable(format string, args ...any) *refusal {
	text := fmt.Sprintf(format, args...)
	return &refusal{http.StatusUnprocessableEntity, text, map[string]any{"status": "error", "error": text}}
}

// refusal says why an operation failed.
func (a *api) refusal(ctx context.Context, op operation, r *request, err error) *refusal {
	var already *refusal
	if errors.As(err, &already) {
		return already
	}
	if kind := pg.KindOf(err); kind == fault.Invalid || kind == fault.Conflict || kind == fault.Exhausted {
		return unprocessable("%v", err)
	}
	status, header, text := a.cfg.Explain(ctx, op.name, err)
	maps.Copy(r.w.Header(), header)
	return &refusal{status: status, detail: text}
}

// details are what Trifle says where http.StatusText says otherwise.
var details = map[int]string{
	http.StatusBadRequest:   "Bad request",
	http.StatusUnauthorized: "Bad token",
}

func (r *request) refuse(no *refusal) {
	body := no.errors
	if body == nil {
		detail := details[no.status]
		if detail == "" {
			detail = http.StatusText(no.status)
		}
		body = map[string]any{"detail": detail}
	}
	if no.detail != "" {
		text := strconv.QuoteToASCII(strings.ReplaceAll(no.detail, `"`, "'")) // a header is ASCII, without control bytes
		r.w.Header().Set("X-Howdah-Detail", text[1:len(text)-1])
	}
	r.write(no.status, map[string]any{"errors": body})
}

func (r *request) write(status int, body any) {
	r.w.Header().Set("X-Content-Type-Options", "nosniff")
	r.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	r.w.WriteHeader(status)
	e := json.NewEncoder(r.w)
	e.SetEscapeHTML(false)
	e.Encode(body) // the client is gone if this fails
}
