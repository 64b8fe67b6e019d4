package pgtest_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/howdah-db/howdah/internal/pgtest"
)

// failing is a test that only notes why it ends.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestUntilEnds(t *testing.T) {
	t.Parallel()
	asked := 0
	pgtest.Until(t, "the third time", func() bool { asked++; return asked == 3 })
	if asked != 3 {
		t.Errorf("asked %d times", asked)
	}

	f, ended := &failing{TB: t}, make(chan struct{})
	go func() {
		defer close(ended)
		pgtest.UntilIn(f, time.Millisecond, "pigs fly", func() bool { return false })
	}()
	<-ended
	if want := "waited 1ms in vain: pigs fly"; f.said != want {
		t.Errorf("it says %q, want %q", f.said, want)
	}
}

func TestUntilSQL(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.Schema(t).Config().ConnString())
	if _, err := conn.Exec(within(t), `CREATE TEMP SEQUENCE s`); err != nil {
		t.Fatal(err)
	}
	pgtest.UntilSQL(t, conn, "the sixth time", `SELECT CASE nextval('s') / 2 WHEN 0 THEN NULL WHEN $1 THEN true ELSE false END`, 3)
	if n := ask[int](t, conn, `SELECT nextval('s')`); n != 7 {
		t.Errorf("asked %d times", n-1)
	}

	f, ended := &failing{TB: t}, make(chan struct{})
	go func() {
		defer close(ended)
		pgtest.UntilSQL(f, conn, "no table", `SELECT true FROM there_is_none`)
	}()
	<-ended
	if want := `no table: ERROR: relation "there_is_none" does not exist (SQLSTATE 42P01)`; f.said != want {
		t.Errorf("it says %q, want %q", f.said, want)
	}
}

func TestReceiveEnds(t *testing.T) {
	t.Parallel()
	c := make(chan string, 1)
	c <- "a word"
	if got := pgtest.Receive(t, c, "a word"); got != "a word" {
		t.Errorf("it is %q", got)
	}
	f, ended := &failing{TB: t}, make(chan struct{})
	go func() {
		defer close(ended)
		pgtest.ReceiveIn(f, time.Millisecond, c, "another")
	}()
	<-ended
	if want := "waited 1ms in vain: another"; f.said != want {
		t.Errorf("it says %q, want %q", f.said, want)
	}
	close(c)
	if got := pgtest.Receive(t, c, "the end"); got != "" {
		t.Errorf("after the end it is %q", got)
	}
}
