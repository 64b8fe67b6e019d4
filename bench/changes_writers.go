package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/changes"
)

// Writers lets clients insert single rows, each in a transaction of its own, into
// a captured table and into tables with other ways to keep a log; all of them take
// turns. Bars are for a hand-written trigger, none, the talk's way, and the same
// capture without a doorbell.
type Writers struct {
	Clients int
	Bars    [4]float64
}

var writersControls = []string{
	"hand-written trigger, plain log table, two indexes",
	"no trigger",
	"the talk's: log row and pg_notify of it",
	"the same with wake=poll",
}

// Title implements Row.
func (w Writers) Title() string { return fmt.Sprintf("single-row INSERT, %d clients", w.Clients) }

// Measure implements Row. The first round is for warming up.
func (w Writers) Measure(ctx context.Context, lab *Lab) ([]Result, error) {
	lab.Say("preparing")
	f, err := openFeed(ctx, lab, "captured", "plain", "bare", "talk", "polled")
	if err != nil {
		return nil, err
	}
	if err := f.capture(ctx, changes.Capture{Table: "public.captured"}, changes.Capture{Table: "public.polled", Wake: "poll"}); err != nil {
		return nil, err
	}
	if err := lab.Exec(ctx, plainLog...); err != nil {
		return nil, err
	}
	pool, err := lab.OpenPool(ctx, w.Clients)
	if err != nil {
		return nil, err
	}
	logs := map[string]string{"captured": "howdah.change", "polled": "howdah.change", "plain": "plain_log", "talk": "talk_log", "bare": "bare"}
	side := func(table string) Side {
		return Side{
			Prepare: func(ctx context.Context) error { return lab.Exec(ctx, `TRUNCATE `+table+`, `+logs[table]) },
			Run: func(ctx context.Context) (int, error) {
				return w.write(ctx, pool, table, time.Duration(lab.N(1500, 300))*time.Millisecond)
			},
		}
	}
	var own []float64
	controls, ratios := make([][]float64, 4), make([][]float64, 4)
	for round := range lab.Rounds + 1 {
		b, err := side("captured").rate(ctx, lab, round, "howdah")
		if err != nil {
			return nil, fmt.Errorf("howdah: %w", err)
		}
		if round > 0 {
			own = append(own, b)
		}
		for i, table := range []string{"plain", "bare", "talk", "polled"} {
			a, err := side(table).rate(ctx, lab, round, writersControls[i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", writersControls[i], err)
			}
			if round > 0 {
				controls[i], ratios[i] = append(controls[i], a), append(ratios[i], b/a)
			}
		}
	}
	var results []Result
	for i, control := range writersControls {
		results = append(results, Result{
			Work: w.Title(), Control: control, Bar: w.Bars[i],
			Figures: []Figure{{"control", median(controls[i]), "/s"}, {"howdah", median(own), "/s"}},
			Of:      "ratio", Value: median(ratios[i]), Min: slices.Min(ratios[i]), Max: slices.Max(ratios[i]),
		})
	}
	return results, nil
}

// write lets every client insert one row after the other for a while.
func (w Writers) write(ctx context.Context, pool *pgxpool.Pool, table string, duration time.Duration) (int, error) {
	insert := `INSERT INTO ` + table + ` (name, mail, n) VALUES ($1, $2, $3)`
	var sum atomic.Int64
	errs := make([]error, w.Clients)
	var clients sync.WaitGroup
	for i := range errs {
		clients.Go(func() {
			for began := time.Now(); time.Since(began) < duration; sum.Add(1) {
				if _, errs[i] = pool.Exec(ctx, insert, "Ada Lovelace", "ada@example.com", i); errs[i] != nil {
					return
				}
			}
		})
	}
	clients.Wait()
	return int(sum.Load()), errors.Join(errs...)
}

// plainLog is what one would write by hand, and what the talk shows.
var plainLog = []string{`
	CREATE TABLE plain_log (
		id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		at         timestamptz NOT NULL DEFAULT clock_timestamp(),
		op         text        NOT NULL,
		table_name text        NOT NULL,
		key        jsonb,
		row        jsonb)`, `
	CREATE INDEX ON plain_log (table_name, at)`, `
	CREATE FUNCTION plain_log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO plain_log (op, table_name, key, row)
		VALUES (TG_OP, TG_TABLE_NAME, jsonb_build_object('id', NEW.id), to_jsonb(NEW));
		RETURN NULL;
	END $$`, `
	CREATE TRIGGER log AFTER INSERT OR UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION plain_log()`, `
	CREATE TABLE talk_log (
		id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		payload    jsonb,
		schema     text,
		klass_name text,
		created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
		updated_at timestamptz NOT NULL DEFAULT clock_timestamp())`, `
	CREATE FUNCTION talk_log() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE
		said jsonb := jsonb_build_object('operation', TG_OP, 'klass_name', TG_TABLE_NAME, 'crud_method', 'create_or_update', 'record_id', NEW.id);
		log  bigint;
	BEGIN
		INSERT INTO talk_log (payload, schema, klass_name)
		VALUES (said, TG_TABLE_SCHEMA, TG_TABLE_NAME)
		RETURNING id INTO log;
		PERFORM pg_notify('create_or_update_record', (said || jsonb_build_object('database_trigger_log_id', log))::text);
		RETURN NULL;
	END $$`, `
	CREATE TRIGGER log AFTER INSERT OR UPDATE ON talk FOR EACH ROW EXECUTE FUNCTION talk_log()`,
}
