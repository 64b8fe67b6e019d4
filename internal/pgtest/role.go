package pgtest

import (
	"net/url"
	"testing"
)

// As returns the URL of the same database for another role.
func As(t testing.TB, server, role, password string) string {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil || u.Scheme == "" {
		return server + " user=" + role + " password=" + password // keyword=value form: the last one counts
	}
	u.User = url.UserPassword(role, password)
	return u.String()
}
