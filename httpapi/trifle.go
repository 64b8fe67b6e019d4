package httpapi

import (
	"net/http"

	"github.com/howdah-db/howdah/compat/triflehttp"
)

// trifle serves the routes of Trifle beside ours; as those of iidy they have forms of
// their own.
func (a *api) trifle(next http.Handler) http.Handler {
	theirs := triflehttp.New(a.client.Writers.Counters, a.client.Reads().Counters, triflehttp.Config{
		Version: a.cfg.Version,
		Timeout: a.cfg.Timeout,
		MaxBody: a.cfg.MaxBody,
		Explain: a.explain,
	})
	return a.beside(next, "/api/v1/", theirs)
}
