package changes_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// own gives the capture of table to a service.
const own = `UPDATE howdah.change_spec SET owner = 'documents' WHERE relation = $1::text::regclass`

// ownedBy checks that err refuses to touch what a service captures for itself.
func ownedBy(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), `"shop.kept" is captured for the service documents`) {
		t.Errorf("%s: %v, want Conflict with the service's name", what, err)
	}
}

// What a service captures for itself is shown to who asks for it, and ended or changed by
// nobody else; only mended.
func TestCaptureOfAService(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA shop; CREATE TABLE shop.kept (id int PRIMARY KEY); CREATE TABLE shop.mine (id int PRIMARY KEY)`)
	kept, mine, all := changes.Capture{Table: "shop.kept"}, changes.Capture{Table: "shop.mine"}, changes.Capture{Table: "shop.*", Payload: changes.PayloadKeys}
	capture(t, l, kept, mine)
	exec(t, pool, own, "shop.kept")
	before := triggers(t, pool)

	shown := func(all bool) (shown []string) {
		captures, err := l.Captures(t.Context(), all)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range captures {
			shown = append(shown, c.Table+" "+c.Owner)
		}
		return shown
	}
	if diff := cmp.Diff([]string{"shop.mine "}, shown(false)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"shop.kept documents", "shop.mine "}, shown(true)); diff != "" {
		t.Error(diff)
	}

	_, err := l.Release(t.Context(), "shop.kept")
	ownedBy(t, "Release", err)
	other := changes.Capture{Table: "shop.kept", Payload: changes.PayloadFull}
	_, err = l.Apply(t.Context(), []changes.Capture{other}, false)
	ownedBy(t, "Apply", err)
	_, err = l.Plan(t.Context(), []changes.Capture{mine, other}, false)
	ownedBy(t, "Plan", err)
	_, err = l.Apply(t.Context(), []changes.Capture{{Table: "shop.mine", Owner: "documents"}}, false)
	invalid(t, "a capture that claims to be a service's", err, "owner")
	if got := triggers(t, pool); got != before {
		t.Errorf("after what was refused there are %s", got)
	}

	// Neither a pattern means it nor prune.
	steps, err := l.Apply(t.Context(), []changes.Capture{all}, true)
	if err != nil || len(steps) != 1 || steps[0].Table != "shop.mine" || steps[0].Action != changes.Replace {
		t.Errorf("Apply of a pattern did %+v, %v; want shop.mine replaced", steps, err)
	}
	if steps, err := l.Apply(t.Context(), []changes.Capture{}, true); err != nil || len(steps) != 1 || steps[0].Table != "shop.mine" {
		t.Errorf("Apply of nothing did %+v, %v; want shop.mine released", steps, err)
	}

	exec(t, pool, `DROP TRIGGER "!howdah_insert" ON shop.kept`)
	if steps, err := l.Apply(t.Context(), []changes.Capture{kept}, false); err != nil || len(steps) != 1 {
		t.Errorf("Apply of what it is captured as did %+v, %v; want it mended", steps, err)
	}
	if diff := cmp.Diff([]string{"shop.kept documents"}, shown(true)); diff != "" {
		t.Error(diff)
	}
	if err := l.Uninstall(t.Context()); err != nil {
		t.Error(err)
	}
	if got := triggers(t, pool); got != "" {
		t.Errorf("after Uninstall there are %s", got)
	}
}

// A service that takes a capture over while somebody is about to end or to change it has
// it whole.
func TestCaptureIsTakenOverMeanwhile(t *testing.T) {
	t.Parallel()
	l, pool := newLog(t)
	exec(t, pool, `CREATE SCHEMA shop; CREATE TABLE shop.kept (id int PRIMARY KEY)`)
	for what, do := range map[string]func() error{
		"Release": func() error { _, err := l.Release(t.Context(), "shop.kept"); return err },
		"Apply": func() error {
			_, err := l.Apply(t.Context(), []changes.Capture{{Table: "shop.kept", Payload: changes.PayloadFull}}, false)
			return err
		},
	} {
		exec(t, pool, `UPDATE howdah.change_spec SET owner = NULL`)
		capture(t, l, changes.Capture{Table: "shop.kept"})
		before := triggers(t, pool)
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `LOCK TABLE shop.kept IN ACCESS EXCLUSIVE MODE`); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- do() }()
		pgtest.UntilSQL(t, pool, what+" to wait for the table", `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'shop.kept'::regclass AND NOT granted)`)
		if _, err := tx.Exec(t.Context(), own, "shop.kept"); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		ownedBy(t, what, pgtest.Receive(t, done, "the end of "+what))
		if got := triggers(t, pool); got != before {
			t.Errorf("after %s there are %s", what, got)
		}
	}
}
