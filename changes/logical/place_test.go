package logical_test

import (
	"context"
	"encoding/binary"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/howdah-db/howdah/changes/logical"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// Where a commit begins exactly at the place of a slot, PostgreSQL hands it over: it is
// the first that the log has.
func TestPumpBeginsWithTheCommitAtItsPlace(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	exec(t, f.source, `SELECT pg_create_logical_replication_slot(current_database()::text, 'pgoutput')`)
	exec(t, f.source, `BEGIN; SET LOCAL synchronous_commit = on; INSERT INTO shop.t VALUES (1, 'first'); COMMIT`) // peeking ends with the disk
	var begin []byte
	if err := f.source.QueryRow(t.Context(), `
		SELECT data
		FROM pg_logical_slot_peek_binary_changes($1, NULL, 1, 'proto_version', '1', 'publication_names', 'howdah')
		LIMIT 1`, f.slot).Scan(&begin); err != nil || begin[0] != 'B' {
		t.Fatalf("%q, %v, want a begin", begin, err)
	}
	commit := pglogrepl.LSN(binary.BigEndian.Uint64(begin[1:]))
	var place string
	if err := f.source.QueryRow(t.Context(), `SELECT end_lsn::text FROM pg_replication_slot_advance($1, $2::text::pg_lsn)`, f.slot, commit.String()).Scan(&place); err != nil {
		t.Fatal(err)
	}
	if place != commit.String() {
		t.Fatalf("the slot stands at %s, want %s, where the commit begins", place, commit)
	}
	stop := f.start(t, f.target, f.config())
	exec(t, f.source, `INSERT INTO shop.t VALUES (2, 'the end')`)
	if all := feed(t, f.log, "the end"); len(all) != 1 || string(all[0].Key) != `{"id":1}` {
		t.Errorf("%+v, want the one at the slot's place", all)
	}
	stop()
	f.start(t, f.target, f.config())()
}

// Rows of a partitioned table have the name of their partition, or that of the table
// where the publication says so.
func TestPumpOfPartitions(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `
		CREATE TABLE shop.t (id int PRIMARY KEY, note text) PARTITION BY LIST (id);
		CREATE TABLE shop.t_1 PARTITION OF shop.t FOR VALUES IN (1); CREATE TABLE shop.t_rest PARTITION OF shop.t DEFAULT`)
	f.publish(t)
	stop := f.start(t, f.target, f.config())
	exec(t, f.source, `INSERT INTO shop.t VALUES (1, '')`)
	exec(t, f.source, `ALTER PUBLICATION howdah SET (publish_via_partition_root)`)
	exec(t, f.source, `INSERT INTO shop.t VALUES (2, '')`)
	exec(t, f.source, `INSERT INTO shop.t VALUES (3, 'the end')`)
	all := feed(t, f.log, "the end")
	stop()
	if len(all) != 2 || all[0].Table != "t_1" || all[1].Table != "t" {
		t.Errorf("%+v, want one of t_1 and one of t", all)
	}
}

// A slot that another session is still making is waited for.
func TestPumpOfASlotThatIsBeingMade(t *testing.T) {
	t.Parallel()
	f := newFixture(t, `CREATE TABLE shop.t (id int PRIMARY KEY, note text)`)
	f.publish(t)
	open, err := f.source.Begin(t.Context()) // it is not made before this ends
	if err != nil {
		t.Fatal(err)
	}
	defer open.Rollback(t.Context())
	if _, err := open.Exec(t.Context(), `INSERT INTO shop.t VALUES (1, '')`); err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	go func() {
		_, err := f.source.Exec(t.Context(), `SELECT pg_create_logical_replication_slot(current_database()::text, 'pgoutput')`)
		made <- err
	}()
	pgtest.UntilSQL(t, f.source, "the slot is being made", `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, f.slot)
	var tries atomic.Int32
	cfg := f.config()
	cfg.Log = slog.New(slog.NewTextHandler(writerFunc(func() { tries.Add(1) }), nil))
	p, err := logical.New(f.target, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	eventually(t, "a try of the pump", func() bool { // or it has the slot: what others decode may make one ready sooner
		var begun bool
		if err := f.target.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM howdah.change_pump)`).Scan(&begun); err != nil {
			t.Fatal(err)
		}
		return tries.Load() > 0 || begun
	})
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := pgtest.Receive(t, made, "the slot"); err != nil {
		t.Error(err)
	}
	exec(t, f.source, `INSERT INTO shop.t VALUES (2, 'the end')`)
	feed(t, f.log, "the end")
	cancel()
	if err := pgtest.Receive(t, done, "the end of Run"); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// writerFunc is called for what is logged.
type writerFunc func()

func (f writerFunc) Write(b []byte) (int, error) { f(); return len(b), nil }
