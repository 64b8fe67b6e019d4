package pg_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/internal/pgtest"
	"github.com/howdah-db/howdah/pg"
)

// withReceipts makes the flush of a logbook idempotent, as BATCHER.md says.
func withReceipts(cfg *logbookConfig) {
	cfg.Idempotent = true
	cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
		tag, err := tx.Exec(ctx, "INSERT INTO receipt VALUES ($1, $2) ON CONFLICT DO NOTHING", batch.Writer, batch.Seq)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		return flushLogbook(ctx, tx, batch)
	}
}

// What a repeat runs into after a COMMIT of unknown outcome says nothing of the
// values: they are not written again in halves, nor called unwritten.
func TestBatcherRejectedAfterAnUnknownCommit(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 2; n++ {
		cfg, proxy, direct := proxied(t, pgtest.Database(t))
		if _, err := direct.Exec(soon(t), "CREATE TABLE receipt (writer text, seq bigint, PRIMARY KEY (writer, seq))"); err != nil {
			t.Fatal(err)
		}
		withReceipts(&cfg)
		write := cfg.Flush
		var flushes atomic.Int32
		cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
			if flushes.Add(1) == 2 {
				_, err := tx.Exec(ctx, "SELECT 1/0")
				return err
			}
			return write(ctx, tx, batch)
		}
		b := pg.NewBatcher(cfg)
		var answers []<-chan answer
		for i := range n {
			answers = append(answers, put(soon(t), b, string(rune('a'+i)), "x"))
			taken(t, b, i+1)
		}
		proxy.CutOn([]byte("commit"))
		run(t, b)
		for i := range n {
			if a := answered(t, answers[i]); !errors.Is(a.err, pg.ErrOutcomeUnknown) {
				t.Errorf("%d values: answer %d is %v, want ErrOutcomeUnknown", n, i, a.err)
			}
		}
		for key, got := range logged(t, direct) {
			if got != "x" {
				t.Errorf("%d values: %s = %q, want it once", n, key, got)
			}
		}
	}
}

// A program that starts again takes no receipt of its predecessor's for its own.
func TestBatchersHaveNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	pool := pgtest.Schema(t)
	cfg := newLogbook(t, pool)
	if _, err := pool.Exec(soon(t), "CREATE TABLE receipt (writer text, seq bigint, PRIMARY KEY (writer, seq))"); err != nil {
		t.Fatal(err)
	}
	withReceipts(&cfg)
	for i := range 3 {
		b := pg.NewBatcher(cfg)
		stop := run(t, b)
		if _, err := b.Put(soon(t), fmt.Sprint("process ", i), "x"); err != nil {
			t.Error(err)
		}
		stop()
	}
	if rows := logged(t, pool); len(rows) != 3 {
		t.Errorf("acknowledged 3, written %v", rows)
	}
}

// An EOF of the Flush's own is a fault of its value, not of the connection.
func TestBatcherKnowsItsConnectionFromOthers(t *testing.T) {
	t.Parallel()
	cfg := newLogbook(t, pgtest.Schema(t))
	write := cfg.Flush
	cfg.Flush = func(ctx context.Context, tx pgx.Tx, batch logbookBatch) error {
		for _, e := range batch.Entries {
			if e.Key == "bad" {
				return fmt.Errorf("decode: %w", io.ErrUnexpectedEOF)
			}
		}
		return write(ctx, tx, batch)
	}
	b := pg.NewBatcher(cfg)
	bad, good := put(soon(t), b, "bad", "x"), put(soon(t), b, "good", "x")
	run(t, b)
	if a := answered(t, good); a.err != nil {
		t.Errorf("good: %v", a.err)
	}
	if a := answered(t, bad); !errors.Is(a.err, io.ErrUnexpectedEOF) {
		t.Errorf("bad: %v", a.err)
	}
}
