package changes_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// names are those that the package exports. A name is a promise to keep: a new one
// wants a reason, here and to whoever reads the change.
var names = map[string]string{
	// The log.
	"New": "", "Config": "", "Log": "", "Log.WithTx": "", "Log.Migrations": "",
	"Log.Vitals": "figures for /metrics", "Vitals": "what it returns", "ShardVitals": "of them",
	// Captures.
	"Capture": "", "Log.Plan": "", "Log.Apply": "", "Log.Captures": "", "Log.Doctor": "", "Log.Uninstall": "",
	"Log.Release": "ends one capture: Apply with prune would need all others", "Log.Triggers": "the talk's list, of every trigger",
	"Step": "what Plan and Apply return", "Finding": "what Doctor returns", "Trigger": "what Triggers returns",
	"Action": "of a Step", "Create": "an Action", "Replace": "an Action", "Release": "an Action",
	"Payload": "of a Capture", "PayloadKeys": "a Payload", "PayloadRow": "a Payload", "PayloadDiff": "a Payload", "PayloadFull": "a Payload",
	// Writing.
	"Log.Emit": "", "Log.Mark": "",
	// Reading.
	"Change": "", "Position": "", "ParsePosition": "", "Position.Compare": "", "Position.String": "",
	"Position.MarshalText": "JSON as its string", "Position.UnmarshalText": "JSON as its string",
	"Log.Sync": "", "Log.Snapshot": "", "Log.At": "", "Log.Page": "", "Log.Wait": "",
	"Log.Start": "where --from start is", "Log.Head": "how far a reader of pages has to go", "Log.Find": "what all edges take: start, now, a time, a position",
	"MaxPage": "the limit that edges have to know", "Filter": "",
	"Pattern": "of a Filter, and of Handle", "ParsePattern": "its text", "ParsePatterns": "several", "Pattern.String": "its text", "Pattern.Matches": "who has the changes already",
	"Op": "of a Change", "Insert": "an Op", "Update": "an Op", "Delete": "an Op", "Truncate": "an Op", "Read": "an Op", "Message": "an Op",
	// Following.
	"NewTail": "", "Tail": "", "Tail.Run": "", "Tail.Watch": "",
	// Consumers.
	"NewConsumer": "", "Consumer": "", "ConsumerConfig": "", "Consumer.Handle": "", "Consumer.Run": "",
	"Consumer.Register": "gives it a place before it runs, for --until now",
	"Handler":           "", "Each": "", "SQL": "", "Webhook": "", "WebhookConfig": "", "WebhookConfig.Check": "before it is run or kept", "Exec": "", "Lines": "", "Notify": "",
	"CloudEvents": "for sinks in packages of their own", "CloudEvent": "what it returns",
	"Log.Consumers": "", "Status": "", "Log.Pause": "", "Log.Resume": "", "Log.Seek": "", "Log.Forget": "", "Log.Parked": "", "Parked": "", "Log.Retry": "", "Log.Skip": "",
	"Log.Consumer": "one of them, or ErrNoConsumer", "Log.Reshard": "their number of shards is changed by a person",
	"Log.Save": "a consumer for servers to run", "Sink": "what it keeps", "Sink.Check": "before it is kept", "Sink.Handler": "of it", "Sink.String": "of it, without secrets",
	"NewRunner": "runs those that are kept", "Runner": "runs those that are kept", "Runner.Run": "",
	"Log.Backfill": "a table's key was changed, or it was wanted later", "Log.EndBackfill": "a table was dropped",
	// Keeping.
	"Log.Tend": "", "Log.Retain": "", "Log.Rebase": "", "Log.Retention": "what Retain set", "Retention": "what it returns",
	"NewKeeper": "Tend every minute at least, for programs with a Run of their own", "Keeper": "it", "Keeper.Run": "",
	// Errors.
	"ErrExpired": "", "ErrAhead": "", "ErrInTx": "", "ErrNeedsTx": "", "ErrNoConsumer": "", "ErrParked": "",
	"ErrRestored": "a dump was restored: only a person can go on",
}

func TestExportedNames(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			for _, name := range exported(decl) {
				found[name] = true
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if _, ok := names[name]; !ok {
			t.Errorf("%s is exported: why?", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !found[name] {
			t.Errorf("%s is no more", name)
		}
	}
}

// exported are the names that a declaration exports: Log, Log.Page.
func exported(decl ast.Decl) (names []string) {
	add := func(prefix string, ident *ast.Ident) {
		if ident.IsExported() {
			names = append(names, prefix+ident.Name)
		}
	}
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Recv == nil {
			add("", d.Name)
			break
		}
		of := d.Recv.List[0].Type
		if pointer, ok := of.(*ast.StarExpr); ok {
			of = pointer.X
		}
		if receiver, ok := of.(*ast.Ident); ok && receiver.IsExported() {
			add(receiver.Name+".", d.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				add("", s.Name)
			case *ast.ValueSpec:
				for _, ident := range s.Names {
					add("", ident)
				}
			}
		}
	}
	return names
}
