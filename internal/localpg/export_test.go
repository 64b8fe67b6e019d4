package localpg

// WithPlaces replaces where binaries are looked for.
func WithPlaces(cfg Config, fixed, path string, usual []string, cache string) Config {
	cfg.places = &places{fixed: fixed, path: path, usual: usual, cache: cache}
	return cfg
}

// WithAccounts replaces who may run the server for root.
func WithAccounts(cfg Config, names ...string) Config {
	cfg.accounts = names
	return cfg
}

var (
	Serves       = serves
	Servers      = servers
	Running      = running
	ParseVersion = parseVersion
	Unpack       = unpack
)
