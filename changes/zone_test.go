package changes_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/changes"
)

// C3, C7: a key is the same key whatever the time zone of who writes it or reads it: else a
// change would overtake a parked one of its row, or go to another shard.
func TestC3KeyInAnyTimeZone(t *testing.T) {
	t.Parallel()
	m := newAudited(t)
	exec(t, m.pool, `
		CREATE DOMAIN instant AS timestamptz;
		CREATE TABLE rows (at timestamptz, id int, v timestamptz, PRIMARY KEY (at, id));
		CREATE TABLE bulk (at timestamptz PRIMARY KEY, id int, v timestamptz);
		CREATE TABLE parts (at timestamptz, id int, v timestamptz, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
		CREATE TABLE part PARTITION OF parts DEFAULT;
		CREATE TABLE domains (at instant PRIMARY KEY, id int, v timestamptz);
		CREATE TABLE ranges (at tstzrange PRIMARY KEY, id int, v timestamptz);
		CREATE TABLE lists (at timestamptz[] PRIMARY KEY, id int, v timestamptz)`)
	values := map[string]string{
		"rows": `'2026-07-01 12:30:00.5Z'`, "bulk": `'2026-07-01 12:30Z'`, "parts": `'2026-07-01 12:30Z'`, "domains": `'2026-07-01 12:30Z'`,
		"ranges": `'[2026-07-01 12:30Z,infinity)'`, "lists": `ARRAY['2026-07-01 12:30Z'::timestamptz, NULL]`,
	}
	var tables []string
	for table := range values {
		capture(t, m.log, changes.Capture{Table: "public." + table, Payload: changes.PayloadFull, Bulk: table == "bulk"})
		tables = append(tables, "public."+table)
	}
	write := func(zone, sql string) {
		err := pgx.BeginFunc(t.Context(), m.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `SELECT set_config('timezone', $1, true)`, zone); err != nil {
				return err
			}
			for table, at := range values {
				if _, err := tx.Exec(t.Context(), fmt.Sprintf(sql, table, at)); err != nil {
					return fmt.Errorf("%s: %w", table, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	write("UTC", `INSERT INTO %s (id, at, v) VALUES (1, %s, '2026-07-01 12:30Z')`)
	write("Asia/Kathmandu", `UPDATE %s SET v = now() WHERE at = %s`)
	cfg := m.pool.Config().ConnConfig.Copy()
	reads := make(chan changes.Change, len(tables))
	start(t, cfg.ConnString()+"&timezone=Asia/Tokyo", filling(tables...), on(changes.Each(func(_ context.Context, _ pgx.Tx, c changes.Change) error {
		if c.Op == changes.Read {
			reads <- c
		}
		return nil
	})))
	filled(t, m, "fill")
	close(reads)
	write("America/New_York", `UPDATE %s SET id = 1, v = NULL WHERE at = %s`)
	write("Europe/Paris", `DELETE FROM %s WHERE at = %s`)

	all, _ := readAll(t, m.log, changes.Position{}, 1000, changes.Filter{})
	for c := range reads {
		all = append(all, c)
	}
	of := map[string][]string{}
	for _, c := range all {
		of[c.Table] = append(of[c.Table], string(c.Key))
	}
	for table := range values {
		keys := of[table]
		if len(keys) != 5 || len(slices.Compact(slices.Clone(keys))) != 1 {
			t.Errorf("%s: the keys of one row are %q", table, keys)
		}
	}

	// Apply sees that a key has come to be one.
	exec(t, m.pool, `CREATE TABLE late (at timestamp PRIMARY KEY)`)
	late := []changes.Capture{{Table: "public.late"}}
	capture(t, m.log, late...)
	exec(t, m.pool, `ALTER TABLE late ALTER at TYPE timestamptz`)
	if steps, err := m.log.Apply(t.Context(), late, false); err != nil || len(steps) != 1 || steps[0].Action != changes.Replace {
		t.Errorf("Apply did %+v, %v; want the triggers replaced", steps, err)
	}
}

// C3: 1.0 and 1.00 are one key, and what happens to it goes one after another.
func TestC3KeyOfAnyScale(t *testing.T) {
	t.Parallel()
	url, l, pool := consumed(t)
	exec(t, pool, `CREATE TABLE n (n numeric PRIMARY KEY)`)
	capture(t, l, changes.Capture{Table: "public.n"})
	exec(t, pool, `INSERT INTO n VALUES (1.0), (2)`)
	exec(t, pool, `UPDATE n SET n = 1.00 WHERE n = 1`)
	p := startPatient(t, url, changes.ConsumerConfig{Name: "c"}, badKey(`{"n":1.0}`))
	eventually(t, "both are parked", func() bool { return registered(l, "c") && len(parked(t, l, "c")) == 2 })
	all := positions(t, l, changes.Filter{})
	if n := p.called(all[2]); n > 1 { // in the batch
		t.Errorf("the second change of the key was handed over %d times", n)
	}
	p.cure()
	if _, err := l.Retry(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is parked", func() bool { return len(parked(t, l, "c")) == 0 })
	want := []string{all[1], all[0], all[2]}
	eventually(t, "all are handled", func() bool { return len(effectsOf(t, pool, "c")) == 3 })
	if got := effectsOf(t, pool, "c"); !slices.Equal(got, want) {
		t.Errorf("handled %q, want %q", got, want)
	}
}
