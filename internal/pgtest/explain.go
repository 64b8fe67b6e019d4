package pgtest

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Explainer is a handle for a store that runs each statement and keeps the
// generic plan it ran by: the one a busy server uses, made without knowing the
// parameters.
type Explainer struct {
	pgx.Tx // what a store does with the handle; rolled back at the end of the test

	t        testing.TB
	plans    *[]string // also of what is begun inside
	prepared *int
}

// Explain returns an Explainer on the database and search_path of pool.
func Explain(t testing.TB, pool interface {
	Begin(context.Context) (pgx.Tx, error)
}) *Explainer {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatalf("pgtest: explain: %v", err)
	}
	t.Cleanup(func() {
		if err := tx.Rollback(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("pgtest: explain: %v", err)
		}
	})
	if _, err := tx.Exec(t.Context(), `SET LOCAL plan_cache_mode = force_generic_plan`); err != nil {
		t.Fatalf("pgtest: explain: %v", err)
	}
	return &Explainer{Tx: tx, t: t, plans: new([]string), prepared: new(int)}
}

// Begin returns an Explainer inside a savepoint.
func (e *Explainer) Begin(ctx context.Context) (pgx.Tx, error) {
	tx, err := e.Tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &Explainer{Tx: tx, t: e.t, plans: e.plans, prepared: e.prepared}, nil
}

// Plan returns the plans, with what was read and how many rows, of the
// statements since the last call.
func (e *Explainer) Plan() string {
	plans := strings.Join(*e.plans, "\n\n")
	*e.plans = nil
	return plans
}

// Query keeps the plan of sql and runs it.
func (e *Explainer) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	e.explain(ctx, sql, args)
	return e.Tx.Query(ctx, sql, args...)
}

// QueryRow keeps the plan of sql and runs it.
func (e *Explainer) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	e.explain(ctx, sql, args)
	return e.Tx.QueryRow(ctx, sql, args...)
}

// Exec keeps the plan of sql and runs it.
func (e *Explainer) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	e.explain(ctx, sql, args)
	return e.Tx.Exec(ctx, sql, args...)
}

// SendBatch keeps the plans of the statements of b and runs them.
func (e *Explainer) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	for _, q := range b.QueuedQueries {
		e.explain(ctx, q.SQL, q.Arguments)
	}
	return e.Tx.SendBatch(ctx, b)
}

// explain runs sql once for its plan and takes back what it did.
func (e *Explainer) explain(ctx context.Context, sql string, args []any) {
	e.t.Helper()
	savepoint, err := e.Tx.Begin(ctx)
	if err != nil {
		e.t.Fatalf("pgtest: explain: %v", err)
	}
	defer savepoint.Rollback(ctx) // its failure would fail the statement itself
	*e.prepared++                 // a name of its own: DEALLOCATE ALL would take pgx's statements too
	name := "howdah_explained_" + strconv.Itoa(*e.prepared)
	if _, err := savepoint.Exec(ctx, `PREPARE `+name+` AS `+sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		e.t.Fatalf("pgtest: explain: %v in %s", err, sql)
	}
	execute := `EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY OFF) EXECUTE ` + name
	if len(args) > 0 {
		execute += "(" + placeholders(len(args)) + ")"
	}
	// EXECUTE takes no parameters; the simple protocol writes them as literals.
	rows, _ := savepoint.Query(ctx, execute, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		e.t.Fatalf("pgtest: explain: %v in %s", err, sql)
	}
	*e.plans = append(*e.plans, strings.Join(lines, "\n"))
}

func placeholders(n int) string {
	marks := make([]string, n)
	for i := range marks {
		marks[i] = "$" + strconv.Itoa(i+1)
	}
	return strings.Join(marks, ", ")
}
