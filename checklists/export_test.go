package checklists

import "time"

// Impatient returns a copy of s that waits for locks no longer than d at a time.
func (s *Store) Impatient(d time.Duration) *Store { c := *s; c.lockPatience = d; return &c }
