package localpg

import "time"

// WithPlaces replaces where binaries are looked for.
func WithPlaces(cfg Config, fixed, path string, usual []string, cache string) Config {
	cfg.places = &places{fixed: fixed, path: path, usual: usual, cache: cache}
	return cfg
}

// WithOthersPatience replaces how long one whose server is tied to it waits for the others.
func WithOthersPatience(cfg Config, d time.Duration) Config {
	cfg.others = d
	return cfg
}

// WithAccounts replaces who may run the server for root.
func WithAccounts(cfg Config, names ...string) Config {
	cfg.accounts = names
	return cfg
}

var (
	DefaultDir   = defaultDir
	CacheDirOf   = cacheDir
	Serves       = serves
	Servers      = servers
	Running      = running
	ParseVersion = parseVersion
	Unpack       = unpack
)
