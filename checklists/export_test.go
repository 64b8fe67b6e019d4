package checklists

// Gather lets calls share a transaction that begins when Run does.
func (w *Writer) Gather() { w.running.Store(true) }

// Gathered is how many calls wait.
func (w *Writer) Gathered() int { return w.batcher.Stats().Pending }

// Flushes is how many transactions were committed.
func (w *Writer) Flushes() uint64 { return w.batcher.Stats().Flushes }
