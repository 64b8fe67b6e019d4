package pgtest

import (
	"context"
	"sync"
	"testing"
)

// Template is a database that tests get copies of, so that what takes long to set up
// is set up once in a process. Make gets the URL of an empty database, and leaves
// nothing connected to it.
type Template struct {
	Make func(ctx context.Context, url string) error

	once sync.Once
	name string
	err  error
}

// Database creates a copy and returns its URL. It is dropped when the test ends,
// whoever is still connected.
func (p *Template) Database(t testing.TB) string {
	t.Helper()
	server := URL(t)
	p.once.Do(func() { p.err = p.make(server) })
	if p.err != nil {
		t.Fatalf("pgtest: template: %v", p.err)
	}
	return database(t, p.name, "")
}

func (p *Template) make(server string) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	p.name = uniqueName()
	if err := execute(server, createDatabase(p.name, template0)); err != nil {
		return err
	}
	kept.add(p.name)
	return p.Make(ctx, withDatabase(server, p.name))
}

// kept are the databases that stay until the process ends.
var kept databases

type databases struct {
	mu    sync.Mutex
	names []string
}

func (d *databases) add(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names = append(d.names, name)
}
