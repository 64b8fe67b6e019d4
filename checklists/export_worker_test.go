package checklists

import (
	"context"
	"time"
)

// Tell is what a worker does with results, one of each kind, of items of a lease.
func (s *Store) Tell(ctx context.Context, l Lease, items ...string) (lost int, err error) {
	var tasks []*task
	for i, item := range items {
		o := []outcome{done, failed, putOff, released}[i%4]
		tasks = append(tasks, &task{item: Item{Name: item}, lease: &held{token: l.Token}, outcome: o})
	}
	missing, err := s.tell(ctx, l.List, tasks)
	return len(missing), err
}

// ExtendAll is what a worker does with its leases.
func (s *Store) ExtendAll(ctx context.Context, list string, d time.Duration, tokens ...string) (map[string][]string, error) {
	return s.extendAll(ctx, list, tokens, d)
}

// AnyLeft is what a worker asks that is to end.
func (s *Store) AnyLeft(ctx context.Context, list string) (bool, error) { return s.anyLeft(ctx, list) }
