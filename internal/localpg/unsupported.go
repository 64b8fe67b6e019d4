//go:build !unix

package localpg

import (
	"context"
	"fmt"
)

// Server is a private PostgreSQL. There is none on this system: it needs unix
// sockets, flock and signals.
type Server struct{}

type places struct{}

func usualPlaces() *places { return nil }

// Start always fails here, with [ErrNoPostgres], whose text names the ways out.
func Start(context.Context, Config) (*Server, error) {
	return nil, fmt.Errorf("localpg: start: not supported on this system: %w", ErrNoPostgres)
}

// Fetch always fails here, with [ErrNoPostgres].
func Fetch(ctx context.Context, cacheDir, platform string, say func(string)) (binDir string, err error) {
	return "", fmt.Errorf("localpg: fetch: not supported on this system: %w", ErrNoPostgres)
}

// The methods below are never reached, because Start returns no Server.

func (*Server) URL() string                { return "" }
func (*Server) Dir() string                { return "" }
func (*Server) Data() string               { return "" }
func (*Server) BinDir() string             { return "" }
func (*Server) Version() string            { return "" }
func (*Server) PID() int                   { return 0 }
func (*Server) Reused() bool               { return false }
func (*Server) Stop(context.Context) error { return nil }
func (*Server) Run(context.Context) error  { return nil }
