package checklists

// Gather lets all calls share transactions, the first of which begins when Run does.
func (w *Writer) Gather() {
	w.running.Store(true)
	w.callers.Add(1)
}

// Gathered is how many calls wait.
func (w *Writer) Gathered() int { return w.batcher.Stats().Pending }

// Flushes is how many transactions were committed.
func (w *Writer) Flushes() uint64 { return w.batcher.Stats().Flushes }

// WriterStatements are the changes that a Writer makes of what nobody has locked.
func (s *Store) WriterStatements() map[string]string {
	return map[string]string{
		"increment": s.sql(incrementFree), "delete": s.sql(deleteFree), "done": s.sql(doneFree), "fail": s.sql(failFree),
	}
}
