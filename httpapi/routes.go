package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// routes is the map of the API. Names of lists and items are percent-encoded, so
// that they may hold slashes; the list without a name has no path.
func (a *api) routes() {
	const get, post, put, patch, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete

	add(a, get, "/healthz", "health", "Is the process alive", a.health)
	add(a, get, "/readyz", "ready", "Can it serve: 503 while the database is away", a.ready, mayBeAway)

	add(a, post, "/v1/transact", "services-transact", "Several operations of any services in one transaction", a.transact, mayConflict)

	add(a, get, "/v1/checklists", "checklists-lists", "The lists, in order, and how far they are", a.listLists)
	add(a, get, "/v1/checklists/{list}", "checklists-settings", "How a list hands out its items, and how far it is", a.getList, mayMiss, mayConflict)
	add(a, patch, "/v1/checklists/{list}", "checklists-set", "Change some settings of a list, or pause it", a.setList, mayConflict)
	add(a, del, "/v1/checklists/{list}", "checklists-drop", "Take a list away with all that is known of it", a.dropList, mayMiss, unhurried)
	add(a, post, "/v1/checklists/{list}/rename", "checklists-rename", "Give a list another name", a.renameList, mayMiss, mayConflict, unhurried)
	add(a, post, "/v1/checklists/{list}/items", "checklists-insert", "Put items on a list; those already there are skipped, or changed", a.insertItems, mayConflict)
	add(a, get, "/v1/checklists/{list}/items", "checklists-page", "A page of items, in order, perhaps those in some state or with some error", a.pageItems, mayConflict)
	add(a, get, "/v1/checklists/{list}/items/{item}", "checklists-get", "One item", a.getItem, mayMiss)
	add(a, post, "/v1/checklists/{list}/increment", "checklists-increment", "Add an attempt to items", a.incrementItems)
	add(a, post, "/v1/checklists/{list}/delete", "checklists-delete", "Take items off a list", a.deleteItems)
	add(a, post, "/v1/checklists/{list}/import", "checklists-import", "Put a stream of items on a list", a.importItems, streamIn, mayConflict)
	add(a, get, "/v1/checklists/{list}/export", "checklists-export", "The items of a list as a stream", a.exportItems, streamOut, mayConflict)

	add(a, post, "/v1/checklists/{list}/claim", "checklists-claim", "Take items that are ready, for some time", a.claimItems, mayConflict, mayWait)
	add(a, post, "/v1/checklists/{list}/leases/{token}/done", "checklists-done", "Take claimed items off their list, as done", a.doneItems, mayConflict)
	add(a, post, "/v1/checklists/{list}/leases/{token}/fail", "checklists-fail", "Say that attempts at claimed items failed", a.failItems, mayConflict, mayMend)
	add(a, post, "/v1/checklists/{list}/leases/{token}/release", "checklists-release", "Give claimed items back, as if they had never been claimed", a.releaseItems, mayConflict)
	add(a, post, "/v1/checklists/{list}/leases/{token}/extend", "checklists-extend", "Let a lease end later", a.extendLease, mayConflict)
	add(a, post, "/v1/checklists/{list}/kill", "checklists-kill", "Give items up, whoever has them", a.killItems, mayConflict)
	add(a, post, "/v1/checklists/{list}/redrive", "checklists-redrive", "Make dead items ready again, with no attempts", a.redriveItems, mayConflict)
	add(a, get, "/v1/checklists/{list}/progress", "checklists-progress", "How far a list is", a.listProgress, mayConflict)
	add(a, get, "/v1/checklists/{list}/watch", "checklists-watch", "How far a list is, as it goes on, as Server-Sent Events", a.watchList, mayConflict, progressOut)
	add(a, post, "/v1/checklists/{list}/recount", "checklists-recount", "Mend the counts of a list after a restore", a.recountList, mayConflict, unhurried, mayBeEmpty)

	add(a, post, "/v1/counters/keys/{key}/track", "counters-track", "Add values to the buckets of a time", a.track, mayBeReused)
	add(a, post, "/v1/counters/keys/{key}/assert", "counters-assert", "Put values into the buckets of a time", a.assert, mayBeReused)
	add(a, post, "/v1/counters/events", "counters-apply", "Many events of any metrics", a.applyEvents, eventsIn, mayBeReused)
	add(a, get, "/v1/counters/keys/{key}", "counters-values", "The buckets of a metric, as a series or a stream", a.seriesOf, a.seriesOut)
	add(a, get, "/v1/counters/keys/{key}/query", "counters-query", "A sum, a quantile, a timeline … of a metric", a.queryKey)
	add(a, get, "/v1/counters/keys/{key}/watch", "counters-watch", "The newest buckets of a metric, as they change, as Server-Sent Events", a.watchKey, mayConflict, bucketsOut)
	add(a, put, "/v1/counters/keys/{key}/beam", "counters-beam", "Keep the last known state of a key", a.beam)
	add(a, get, "/v1/counters/keys/{key}/beam", "counters-scan", "The last known state of a key", a.scan, mayMiss)
	add(a, post, "/v1/counters/rows/get", "counters-get", "What rows hold, by their keys", a.getRows)
	add(a, post, "/v1/counters/rows/inc", "counters-inc", "Add values to rows", a.incRows)
	add(a, post, "/v1/counters/rows/set", "counters-set", "Put values into rows", a.setRows)
	add(a, post, "/v1/counters/fold", "counters-fold", "Add what is in slots to the rows", a.fold, unhurried, mayBeEmpty)
	add(a, get, "/v1/counters/keys", "counters-page", "The metrics of which there are rows, and since when", a.pageMetrics)
	add(a, del, "/v1/counters/keys/{key}", "counters-delete", "Delete buckets of a metric, all or those of some time", a.deleteMetric, unhurried)
	add(a, post, "/v1/counters/keys/{key}/rename", "counters-rename", "Give a metric another name", a.renameMetric, mayConflict, unhurried)
	add(a, post, "/v1/counters/keys/{key}/rebuild", "counters-rebuild", "Make coarse buckets of a metric anew, of finer ones", a.rebuildMetric, unhurried)
	add(a, post, "/v1/counters/keys/{key}/replace", "counters-replace", "Put a stream of events in the place of what was counted", a.replaceMetric, daysIn)
	add(a, get, "/v1/counters/keys/{key}/verify", "counters-verify", "Where coarse buckets are not what finer ones make", a.verifyMetric, unhurried)
	add(a, get, "/v1/counters/export", "counters-export", "All rows, or those of some metrics, as a stream", a.exportRows, mayConflict, rowsOut)
	add(a, post, "/v1/counters/rows/import", "counters-import", "Put a stream of rows as they are", a.importRows, mayConflict, rowsIn)
	add(a, get, "/v1/counters/settings", "counters-settings", "How the table counts", a.counterSettings)
	add(a, get, "/v1/counters/doctor", "counters-doctor", "What is wrong with the table, and what to do", a.examineCounters)

	add(a, get, "/v1/changes", "changes-page", "A page of the feed", a.pageChanges, mayMiss, mayConflict)
	add(a, get, "/v1/changes/stream", "changes-watch", "The feed as it comes, as Server-Sent Events", a.watchChanges, mayMiss, mayConflict, changesOut)
	add(a, get, "/v1/changes/position", "changes-sync", "Number what has committed and return the end of the feed", a.syncChanges, mayConflict)
	add(a, post, "/v1/changes/messages", "changes-emit", "Put a message into the feed", a.emitMessage, creates)
	add(a, get, "/v1/changes/triggers", "changes-triggers", "Every trigger of the database", a.listTriggers)
	add(a, get, "/v1/changes/doctor", "changes-doctor", "What is wrong with the captures and the log, and what to do", a.examineChanges)
	add(a, get, "/v1/changes/captures", "changes-captures", "What is captured", a.listCaptures)
	add(a, post, "/v1/changes/captures/plan", "changes-plan", "What applying captures would do; changes nothing", a.planCaptures, mayConflict)
	add(a, put, "/v1/changes/captures/{schema}/{table}", "changes-apply", "Capture a table, or capture it otherwise", a.applyCapture, mayConflict)
	add(a, del, "/v1/changes/captures/{schema}/{table}", "changes-release", "End the capture of a table; what was logged stays", a.releaseCapture, mayMiss, mayConflict)

	add(a, get, "/v1/changes/consumers", "changes-consumers", "Who is handed changes, and how far each has come", a.listConsumers)
	add(a, get, "/v1/changes/consumers/{name}", "changes-consumer", "How far a consumer has come", a.getConsumer, mayMiss)
	add(a, put, "/v1/changes/consumers/{name}", "changes-save", "Have every server run a consumer: what it is handed, and what is done with that", a.saveConsumer, mayConflict)
	add(a, del, "/v1/changes/consumers/{name}", "changes-forget", "Take a consumer away, with what is parked for it", a.forgetConsumer, mayMiss)
	add(a, post, "/v1/changes/consumers/{name}/pause", "changes-pause", "Have a consumer stand still; what it misses is kept", a.pauseConsumer, mayMiss, mayConflict, mayBeEmpty)
	add(a, post, "/v1/changes/consumers/{name}/resume", "changes-resume", "Have a paused consumer go on", a.resumeConsumer, mayMiss, mayConflict, mayBeEmpty)
	add(a, post, "/v1/changes/consumers/{name}/seek", "changes-seek", "Move a consumer to another place in the feed", a.seekConsumer, mayMiss, mayConflict)
	add(a, post, "/v1/changes/consumers/{name}/reshard", "changes-reshard", "Have a consumer handled in another number of shards", a.reshardConsumer, mayMiss, mayConflict)
	add(a, post, "/v1/changes/consumers/{name}/backfill", "changes-backfill", "Have a consumer read the rows of tables anew, or no more of them", a.backfillConsumer, mayMiss, mayConflict)
	add(a, post, "/v1/changes/consumers/{name}/wait", "changes-wait", "Wait until a consumer has handled all up to a position", a.waitConsumer, mayMiss, mayConflict, mayWait, mayBeEmpty)
	add(a, get, "/v1/changes/consumers/{name}/parked", "changes-parked", "What a consumer could not handle, and what waits behind it", a.parkedOf, mayMiss)
	add(a, post, "/v1/changes/consumers/{name}/parked/retry", "changes-retry", "Try parked changes again at once", a.retryParked, mayMiss, mayBeEmpty)
	add(a, post, "/v1/changes/consumers/{name}/parked/skip", "changes-skip", "Give parked changes up, so that those behind them are handled", a.skipParked, mayMiss)
}

// add registers an operation. Its handler returns errors as the services do;
// they become problems here and nowhere else.
func add[I, O any](a *api, method, path, id, summary string, handle func(context.Context, *I) (*O, error), options ...func(*huma.Operation)) {
	op := huma.Operation{
		OperationID:     id,
		Method:          method,
		Path:            path,
		Summary:         summary,
		Tags:            []string{tag(id)},
		MaxBodyBytes:    a.cfg.MaxBody + 1, // huma refuses what is as long as this
		BodyReadTimeout: a.cfg.BodyTimeout,
		Middlewares:     huma.Middlewares{check},
		Metadata:        map[string]any{ours: true},
		Responses:       map[string]*huma.Response{},
	}
	for _, option := range options {
		option(&op)
	}
	var described *huma.Operation
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		if op.Metadata[endless] == nil {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, a.cfg.Timeout)
			defer cancel()
		}
		out, err := handle(ctx, in)
		if err != nil {
			return nil, a.problem(ctx, described, err)
		}
		return out, nil
	})
	described = operationOf(a.huma.OpenAPI(), method, path)
	if op.Metadata[bodiless] != nil {
		described.RequestBody.Required = false // huma asks it at each request
	}
	a.describe(described)
}
