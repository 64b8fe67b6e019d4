package httpapi

import (
	"compress/gzip"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/howdah-db/howdah/pg"
)

// check stands before every operation: it refuses what net/http and huma would
// read in a way of their own instead of saying that it is wrong.
func check(ctx huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(ctx)
	for _, param := range ctx.Operation().Parameters {
		if param.In == "path" && r.PathValue(param.Name) == loneSlash {
			r.SetPathValue(param.Name, "/")
		}
	}
	if p := checkQuery(r.URL.RawQuery); p != nil {
		writeProblem(w, p)
		return
	}
	if p := checkEncoding(r.Header.Get("Content-Encoding"), ctx.Operation()); p != nil {
		w.Header().Set("Accept-Encoding", accepted(ctx.Operation()))
		writeProblem(w, p)
		return
	}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); ctx.Operation().Metadata[mended] != nil && kind == "application/json" {
		r.Header.Set("Content-Type", mended)
	}
	next(ctx)
}

// checkQuery refuses a query with a part that cannot be read, which would be
// left out, and one that says two things at once, of which one would be taken.
func checkQuery(query string) *Problem {
	values, err := url.ParseQuery(query)
	if err != nil {
		return badField("query", err.Error())
	}
	for name, all := range values {
		if len(all) > 1 {
			return badField("query."+name, "given more than once")
		}
	}
	return nil
}

// checkEncoding refuses bodies that are packed in a way nobody here unpacks.
func checkEncoding(encoding string, op *huma.Operation) *Problem {
	switch strings.ToLower(encoding) {
	case "", "identity", accepted(op):
		return nil
	}
	return newProblem(http.StatusUnsupportedMediaType, "a body with Content-Encoding %q; send it with %s", encoding, accepted(op))
}

// accepted is the encoding of bodies that an operation takes beside none. Only
// streams are unpacked: they are bounded by the line, not by their length.
func accepted(op *huma.Operation) string {
	if op.Metadata[streamed] != nil {
		return "gzip"
	}
	return "identity"
}

// clean reports whether a path has no empty and no dot segments: ServeMux would
// redirect, to a path whose percent signs it has encoded once more.
func clean(u *url.URL) bool {
	p := u.EscapedPath()
	return p == path.Clean(p) || p == "/"
}

// loneSlash stands, on the way through ServeMux, for a name that is a slash and
// nothing else: ServeMux takes such a segment, though encoded, for the end of
// the path. It cannot be a name: of those none holds a NUL.
const loneSlash = "/\x00slash"

// hideLoneSlashes returns r with loneSlash in the place of such names.
func hideLoneSlashes(r *http.Request) *http.Request {
	escaped := r.URL.EscapedPath()
	if !strings.Contains(escaped, "%2") {
		return r
	}
	segments := strings.Split(escaped, "/")
	for i, segment := range segments {
		if strings.EqualFold(segment, "%2f") {
			segments[i] = url.PathEscape(loneSlash)
		}
	}
	hidden, u := *r, *r.URL
	u.RawPath = strings.Join(segments, "/")
	u.Path, _ = url.PathUnescape(u.RawPath) // its parts were unescaped before
	hidden.URL = &u
	return &hidden
}

func badField(location, message string) *Problem {
	p := newProblem(http.StatusBadRequest, "%s: %s", location, message)
	p.Errors = []ProblemField{{Location: location, Message: message}}
	return p
}

// unpacked is the body of a stream without its Content-Encoding. What cannot be
// read of it is the fault of who sends it.
type unpacked struct {
	body io.Reader
	gzip bool
	r    io.Reader // nil before the first Read
}

// Read implements io.Reader.
func (u *unpacked) Read(p []byte) (n int, err error) {
	if u.r == nil {
		u.r = u.body
		if u.gzip {
			if u.r, err = gzip.NewReader(u.body); err != nil {
				u.r = errReader{err}
			}
		}
	}
	if n, err = u.r.Read(p); err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", pg.Refuse("body", "the stream broke off"), err)
	}
	return n, err
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }
