package httpapi

import (
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/howdah-db/howdah/compat/iidyhttp"
)

// guard stands before every route: it keeps other web sites that the user's
// browser visits away from a server that asks for no password.
func (a *api) guard(next http.Handler) http.Handler {
	crossSite := http.NewCrossOriginProtection() // Sec-Fetch-Site, else Origin, on what changes state
	crossSite.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refuse(w, r, newProblem(http.StatusForbidden, "a request from another web site (%s)", r.Header.Get("Origin")))
	}))
	next = crossSite.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &answer{ResponseWriter: w, rc: http.NewResponseController(w), patience: a.cfg.slowReader}
		defer answer.wait() // for what is left of it, which net/http sends
		w = answer
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if v == http.ErrAbortHandler { // a stream that failed on the way: cut, never ended cleanly
				panic(v)
			}
			a.cfg.Log.ErrorContext(r.Context(), "panic", "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
			if answer.begun {
				panic(http.ErrAbortHandler) // too late to say it
			}
			refuse(w, r, newProblem(http.StatusInternalServerError, "the server's log says more"))
		}()
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if a.cfg.LoopbackOnly && !isLoopback(r.Host) {
			refuse(w, r, newProblem(http.StatusForbidden, "host %q is not this machine", r.Host))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse answers a request that comes to no route, in the form of those it was for.
func refuse(w http.ResponseWriter, r *http.Request, p *Problem) {
	if forIidy(r) {
		iidyhttp.Refuse(w, r, p.Status, p.Detail)
		return
	}
	writeProblem(w, p)
}

// answer is what a client is sent. It remembers whether the first byte is on the way, and
// gives a reader who stands still up: what it is to read is kept in memory as long.
type answer struct {
	http.ResponseWriter
	rc       *http.ResponseController
	patience time.Duration
	begun    bool
	failed   bool // the client is gone, or does not read
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	if a.failed { // nobody is told any more
		return
	}
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

// part is what is sent at once: a reader who takes so much in time may be slow.
const part = 64 << 10

func (a *answer) Write(b []byte) (n int, err error) {
	a.begun = true
	for first := true; err == nil && (first || n < len(b)); first = false {
		var sent int
		a.wait()
		sent, err = a.ResponseWriter.Write(b[n:min(n+part, len(b))])
		n += sent
	}
	a.failed = err != nil
	return n, err
}

// FlushError is for http.ResponseController.
func (a *answer) FlushError() error {
	a.begun = true
	a.wait()
	return a.rc.Flush()
}

// wait lets the next part take its time, and no longer.
func (a *answer) wait() {
	a.rc.SetWriteDeadline(time.Now().Add(a.patience)) // where that cannot be, none is needed
}

// isLoopback reports whether a Host header names this machine. A name that only
// resolves to it does not count: an attacker's may, too (DNS rebinding).
func isLoopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if ip := net.ParseIP(name); ip != nil {
		return ip.IsLoopback()
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}
