package counters

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Finding is something about the table that somebody should know.
type Finding struct {
	Code     string `json:"code" example:"settings-unrecorded"`
	Severity string `json:"severity" example:"warning"` // error: numbers are lost, or not shown; warning: they may be, or something is in the way
	Object   string `json:"object" example:"public.trifle_stats"`
	Problem  string `json:"problem" example:"how it counts is recorded nowhere"`
	Cure     string `json:"cure" example:"howdah adopt trifle --yes"`
}

const (
	severe  = "error"
	warning = "warning"
)

// Doctor looks at the table and at what howdah keeps beside it, and returns what is
// wrong with them, the worst first. It reads few rows of a large table, and changes
// nothing. A table that is not there is a finding, and so is what the role may not look at.
func (s *Store) Doctor(ctx context.Context) ([]Finding, error) {
	const op = "counters: doctor"
	findings := []Finding{}
	say := func(code, severity, object, cure, problem string, args ...any) {
		findings = append(findings, Finding{code, severity, object, fmt.Sprintf(problem, args...), cure})
	}
	found, err := s.examine(ctx, s.db)
	switch {
	case errors.Is(err, fault.NotFound):
		say("table-missing", warning, s.cfg.Table.Sanitize(), "howdah migrate makes the default one, howdah counters setup any", "it is not there: nothing can be counted")
		return findings, nil
	case err != nil:
		return nil, pg.Wrap(op, err)
	}
	t, c := found.table, found.catalog
	adoptIt, indexIt := "howdah adopt trifle --table "+c.name(), "howdah adopt trifle --table "+c.name()+" --index"
	if kinds[c.Kind] != "" { // only ordinary tables can be adopted
		adoptIt, indexIt = "howdah counters setup --table "+c.name(), `CREATE INDEX ON … (key COLLATE "C")`
	} else {
		adoptIt, indexIt = adoptIt+" --yes", indexIt+" --yes"
	}
	if !c.Migrated {
		say("not-migrated", severe, t.name, "howdah migrate", "howdah's functions are not there: it can be read, and not be added to")
	}
	if !c.Keyed && kinds[c.Kind] == "" {
		say("no-key", severe, t.name, "ALTER TABLE … ADD PRIMARY KEY ("+t.columns+")", "it has no unique index on (%s): nothing can be added to it", t.columns)
	}
	if t.recorded == nil && !(c.Made && s.usual()) {
		say("settings-unrecorded", warning, t.name, adoptIt+", with the settings that its other programs have",
			"how it counts is recorded nowhere: a program that says nothing, or something else, finds and puts its numbers elsewhere")
	}
	if t.mode == Full && !t.bytewise && c.Kind != "v" && c.Kind != "f" { // which have no indexes
		say("no-bytewise-index", warning, t.name, indexIt, "its keys are in the order of %s: a range of buckets is read key by key", c.Collation)
	}
	for _, look := range []func(context.Context, *examined, sayer) error{s.doctorRows, s.doctorStorage, s.doctorBeside} {
		if err := look(ctx, found, say); err != nil {
			return nil, pg.Wrap(op, s.told(err))
		}
	}
	slices.SortFunc(findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Object, b.Object))
	})
	return findings, nil
}

// sayer takes a finding.
type sayer func(code, severity, object, cure, problem string, args ...any)

// unseen tells of what the role may not read, and what nobody knows therefore.
func (say sayer) unseen(found *examined, object, unknown string) {
	role := pgx.Identifier{found.catalog.Role}.Sanitize()
	say("not-looked-at", warning, object, "GRANT SELECT ON "+object+" TO "+role+", or run this as a role that may", "role %s may not read it: %s is not known", found.catalog.Role, unknown)
}

// usual reports whether the Config says where numbers lie as one that says nothing.
func (s *Store) usual() bool {
	for name, wanted := range s.cfg.fixed() {
		usual := map[string]string{"time_zone": "UTC", "week_start": string(Monday), "separator": "::", "paths": string(Raw)}[name]
		if wanted != "" && wanted != usual {
			return false
		}
	}
	return true
}

// doctorRows looks at rows, a few of them where there are many.
func (s *Store) doctorRows(ctx context.Context, found *examined, say sayer) error {
	if kinds[found.catalog.Kind] != "" {
		return nil
	}
	if !found.catalog.Reads {
		say.unseen(found, found.table.name, "whether its rows lie where they should")
		return nil
	}
	e, err := s.evidence(ctx, found.table, found.catalog, shortLook)
	if err != nil {
		return err
	}
	for _, why := range e.contradicts(found.table) {
		say("settings-contradicted", severe, found.table.name, "howdah adopt trifle says what the rows say; take the record back (--undo --yes) and adopt with the right settings", "%s", why)
	}
	if e.Twins > 0 {
		say("twin-buckets", warning, found.table.name, "let only howdah, or programs in UTC, write it; what is there stays, in the bucket that does not begin at midnight it is not shown",
			"days, months or longer that are there twice: %d, such as %s: another program took the UTC offset of each event", e.Twins, e.TwinSuch)
	}
	return nil
}

// doctorStorage looks at how the table's updates find room.
func (s *Store) doctorStorage(ctx context.Context, found *examined, say sayer) error {
	var live, dead, updates, hot int64
	err := s.db.QueryRow(ctx, `
		SELECT coalesce(sum(n_live_tup), 0), coalesce(sum(n_dead_tup), 0), coalesce(sum(n_tup_upd), 0), coalesce(sum(n_tup_hot_upd), 0)
		FROM pg_stat_all_tables
		WHERE relid = $1::oid`, found.catalog.OID).Scan(&live, &dead, &updates, &hot)
	if err != nil {
		return err
	}
	name := found.table.name
	if dead > 10_000 && dead > live {
		say("bloat", warning, name, "VACUUM "+name+"; end what is old: howdah changes doctor names transactions that keep VACUUM from its work",
			"it has %d dead rows beside %d: reading and adding get slower", dead, live)
	}
	if !found.catalog.Filled && updates > 10_000 && hot < updates/2 {
		say("no-fillfactor", warning, name, "howdah adopt trifle --table "+found.catalog.name()+" --fillfactor --yes",
			"of %d updates %d found no room beside their row, and changed every index: it has no fillfactor", updates, updates-hot)
	}
	return nil
}

const keeperCure = "run howdah serve, or a counters.Keeper, which does so all the time"

// doctorBeside looks at what howdah keeps beside counter tables.
func (s *Store) doctorBeside(ctx context.Context, found *examined, say sayer) error {
	if !found.catalog.Migrated {
		return nil
	}
	var events, turns, slots, yes bool
	err := s.db.QueryRow(ctx, `
		SELECT has_table_privilege('howdah.counter_events', 'SELECT'), has_table_privilege('howdah.counter_turns', 'SELECT'), has_table_privilege($1, 'SELECT')`,
		found.table.readable).Scan(&events, &turns, &slots)
	if err != nil {
		return err
	}
	if !events {
		say.unseen(found, "howdah.counter_events", "whether IDs of events are dropped")
	} else if err := s.db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM howdah.counter_events WHERE at < clock_timestamp() - interval '8 days')`).Scan(&yes); err != nil {
		return err
	} else if yes {
		say("ids-kept", warning, "howdah.counter_events", keeperCure, "IDs of events are older than the 7 days for which they count: nobody drops them")
	}
	switch {
	case !slots:
		say.unseen(found, found.table.readable, "whether something waits in slots")
		return nil
	case !turns:
		say.unseen(found, "howdah.counter_turns", "whether slots are folded")
		return nil
	}
	err = s.db.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM `+found.table.readable+` WHERE tbl = $1)
			AND NOT EXISTS (SELECT FROM howdah.counter_turns WHERE tbl = $1 AND task = $2 AND done > clock_timestamp() - interval '5 minutes')`,
		found.table.name, foldTask).Scan(&yes)
	if yes {
		cure := keeperCure
		if found.table.recorded == nil && !slices.Equal(s.cfg.Table, defaultTable) {
			cure = "record it (howdah adopt trifle, howdah counters setup), and " + cure
		}
		cure += "; howdah counters fold --table " + found.catalog.name() + " does it now"
		say("slots-unfolded", warning, found.table.name, cure,
			"what was counted waits in slots, and nobody has moved it to the rows for 5 minutes: other programs do not see it")
	}
	return err
}
