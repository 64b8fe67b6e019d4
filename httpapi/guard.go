package httpapi

import (
	"net"
	"net/http"
	"runtime/debug"
	"strings"

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
		answer := &answer{ResponseWriter: w}
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

// answer remembers whether its first byte is on the way.
type answer struct {
	http.ResponseWriter
	begun bool
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) WriteHeader(status int) {
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(b)
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
