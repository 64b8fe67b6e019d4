package main

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/howdah-db/howdah"
)

// apart says why a method of a service has no route or no command of its name,
// or a route or command no method.
var apart = map[string]string{
	"method checklists.WithTx":      "transactions are the library's; over HTTP POST /v1/transact",
	"method checklists.Table":       "the name of the store's own table, for Go programs",
	"method checklists.Migrations":  "howdah migrate, and every start of serve, for all services together",
	"method checklists.All":         "Export without a state, which is checklists-export and howdah checklists export",
	"method checklists.Survey":      "howdah adopt iidy",
	"method checklists.Adopt":       "howdah adopt iidy --yes; takes too long for a request",
	"method checklists.UndoAdopt":   "howdah adopt iidy --undo --yes; too much for a request",
	"method changes.WithTx":         "as checklists.WithTx",
	"method changes.Migrations":     "as checklists.Migrations",
	"method changes.Mark":           "says something of the caller's own transaction",
	"method changes.Snapshot":       "a transaction of the caller's; over HTTP and on the command line there is none to hold open",
	"method changes.At":             "--from TIME and after=TIME of those who read",
	"method changes.Start":          "--from start and after=start of those who read",
	"method changes.Head":           "head of changes-page",
	"method changes.Find":           "--from and after of those who read",
	"method changes.Consumer":       "howdah changes consumers NAME",
	"command changes run":           "Consumer.Run, which is not of the Log",
	"method changes.Page":           "changes tail --until now, which reads pages to the end",
	"method changes.Captures":       "howdah changes list",
	"method changes.Triggers":       "howdah changes list --triggers",
	"method changes.Sync":           "howdah changes position",
	"method changes.Uninstall":      "howdah changes uninstall --yes; too much for a request",
	"method changes.Save":           "howdah changes run --save",
	"method changes.Vitals":         "/metrics",
	"method changes.EndBackfill":    "changes-backfill with end, howdah changes backfill --end",
	"method changes.Retain":         "howdah changes retention with an argument; what an operator decides",
	"method changes.Retention":      "howdah changes retention",
	"method changes.Rebase":         "howdah changes rebase; too much for a request",
	"method changes.Tend":           "Keeper.Run, every minute at least while howdah serve runs",
	"command changes listen":        "Hub.Subscribe, which is not of the Log",
	"route changes-watch":           "Tail.Watch, which is not of the Log",
	"command changes capture":       "Apply of one capture",
	"command changes list":          "Captures and Triggers",
	"command changes tail":          "Page, and Tail.Watch",
	"command changes position":      "Sync",
	"command checklists resume":     "Pause, undone",
	"command checklists work":       "Worker.Run, which is not of the Store",
	"method checklists.Settings":    "howdah checklists set without flags",
	"method checklists.Doctor":      "howdah checklists doctor; over HTTP its path would be that of a list by this name",
	"method checklists.Find":        "checklists-page with a state or an error",
	"method checklists.Pause":       "checklists-set with paused",
	"method checklists.Change":      "checklists-set and howdah checklists set: some settings",
	"method checklists.Watch":       "howdah checklists progress --watch",
	"method checklists.Upsert":      "checklists-insert with overwrite, howdah checklists insert --overwrite",
	"method checklists.InsertItems": "checklists-insert with objects, howdah checklists insert with flags",
	"method counters.WithTx":        "as checklists.WithTx",
	"method counters.Migrations":    "as checklists.Migrations",
	"method counters.Survey":        "howdah adopt trifle",
	"method counters.Adopt":         "howdah adopt trifle --yes; takes too long for a request",
	"method counters.UndoAdopt":     "howdah adopt trifle --undo --yes; too much for a request",
	"method counters.Apply":         "howdah counters track and assert, one at a time",
	"method counters.ApplyAll":      "howdah counters import; over HTTP a stream to counters-apply",
	"method counters.Page":          "counters-page, howdah counters keys",
	"command counters keys":         "Page",
	"method counters.Prune":         "howdah counters prune; a server does so by itself",
	"method counters.Rows":          "counters-values with Accept: application/x-ndjson; howdah counters values",
	"route counters-query":          "Series.Ask, which is not of the Store",
	"route counters-watch":          "howdah counters plot --watch; Go asks again with Values",
	"command counters query":        "Series.Ask, which is not of the Store",
	"command counters plot":         "Series.Timeline, which is not of the Store",
	"method counters.Setup":         "howdah counters setup; a server has the table it was started with",
}

// What the library can do, HTTP and the command line can, under the same name,
// and the other way round.
func TestParity(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	missing := func(what string) {
		t.Helper()
		used[what] = true
		if apart[what] == "" {
			t.Errorf("%s has no counterpart; give it one, or say why not", what)
		}
	}
	routes, commands := operationIDs(t), commandPaths()
	methods := map[string]bool{}
	services := reflect.TypeFor[howdah.Services]()
	for i := range services.NumField() {
		service := strings.ToLower(services.Field(i).Name)
		store := services.Field(i).Type
		for j := range store.NumMethod() {
			verb := strings.ToLower(store.Method(j).Name)
			methods[service+" "+verb] = true
			if !routes[service+" "+verb] || !commands[service+" "+verb] {
				missing("method " + service + "." + store.Method(j).Name)
			}
		}
		for route := range routes {
			if strings.HasPrefix(route, service+" ") && !methods[route] {
				missing("route " + strings.Replace(route, " ", "-", 1))
			}
		}
		for command := range commands {
			if strings.HasPrefix(command, service+" ") && !methods[command] {
				missing("command " + command)
			}
		}
	}
	if len(methods) < 10 {
		t.Errorf("only %d methods", len(methods))
	}
	for what := range apart {
		if !used[what] {
			t.Errorf("%s has a counterpart, or is no more", what)
		}
	}
}

// operationIDs are those of the routes, as "checklists insert"; a test of
// httpapi keeps the file up to date.
func operationIDs(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../../docs/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]struct{ OperationID string }
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, path := range doc.Paths {
		for _, operation := range path {
			ids[strings.Replace(operation.OperationID, "-", " ", 1)] = true
		}
	}
	return ids
}

// commandPaths are the commands without the program's name.
func commandPaths() map[string]bool {
	paths := map[string]bool{}
	for _, cmd := range commands() {
		if path, ok := strings.CutPrefix(cmd.CommandPath(), "howdah "); ok {
			paths[path] = true
		}
	}
	return paths
}
