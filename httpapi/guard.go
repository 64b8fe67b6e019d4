package httpapi

import (
	"net"
	"net/http"
	"runtime/debug"
	"strings"
)

// guard stands before every route: it keeps other web sites that the user's
// browser visits away from a server that asks for no password.
func (a *api) guard(next http.Handler) http.Handler {
	crossSite := http.NewCrossOriginProtection() // Sec-Fetch-Site, else Origin, on what changes state
	crossSite.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, newProblem(http.StatusForbidden, "a request from another web site (%s)", r.Header.Get("Origin")))
	}))
	next = crossSite.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if v := recover(); v != nil {
				if v == http.ErrAbortHandler { // a stream that failed on the way: cut, never ended cleanly
					panic(v)
				}
				a.cfg.Log.ErrorContext(r.Context(), "panic", "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
				writeProblem(w, newProblem(http.StatusInternalServerError, "the server's log says more"))
			}
		}()
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if a.cfg.LoopbackOnly && !isLoopback(r.Host) {
			writeProblem(w, newProblem(http.StatusForbidden, "host %q is not this machine", r.Host))
			return
		}
		next.ServeHTTP(w, r)
	})
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
