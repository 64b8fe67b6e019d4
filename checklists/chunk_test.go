package checklists

// InChunksOf returns opt for an import in chunks of n items.
func (opt ImportOptions) InChunksOf(n int) ImportOptions {
	opt.chunk = n
	return opt
}
