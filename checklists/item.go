package checklists

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/howdah-db/howdah/pg"
)

// State is where an item stands.
type State string

// The states of an item.
const (
	StateReady   State = "ready"   // may be claimed now; so may one whose lease has ended
	StateWaiting State = "waiting" // may be claimed from Due on
	StateLeased  State = "leased"  // a worker has it until Due
	StateDead    State = "dead"    // given up, kept with its last error until redriven or deleted
	StateDone    State = "done"    // off the list, of a list that keeps what is done
)

// States are the names of all states.
var States = []string{string(StateReady), string(StateWaiting), string(StateLeased), string(StateDead), string(StateDone)}

// IsZero reports whether JSON leaves the state out: ready goes without saying.
func (s State) IsZero() bool { return s == "" || s == StateReady }

func checkState(s State) error {
	if s != "" && !slices.Contains(States, string(s)) {
		return pg.Refuse("state", "%q; want one of %s", s, strings.Join(States, ", "))
	}
	return nil
}

// Item is an entry of a list. In a table that was there before howdah it has a
// name and attempts only.
type Item struct {
	Name     string          `json:"item"`
	Attempts int             `json:"attempts"`           // begun so far, at most 2147483647
	Priority int             `json:"priority,omitempty"` // 5 is claimed first, -5 last
	State    State           `json:"state,omitzero"`
	Due      time.Time       `json:"due,omitzero"`   // when waiting or a lease ends; zero in other states
	Tried    time.Time       `json:"tried,omitzero"` // when it was claimed last, or done
	Worker   string          `json:"worker,omitempty"`
	Error    string          `json:"error,omitempty"` // of the last attempt that failed
	Payload  json.RawMessage `json:"payload,omitempty"`
}

// stateOf is the state of a row; the order of its arms is that of the rules.
const stateOf = `CASE WHEN due <= statement_timestamp() THEN 'ready' WHEN due = 'infinity' THEN 'dead' WHEN lease IS NULL THEN 'waiting' ELSE 'leased' END`

// The columns that scanItem reads: of a plain table, of howdah's, of done items.
const (
	plainColumns = `item, attempts`
	fullColumns  = `item, attempts, priority, ` + stateOf + ` AS state,
			CASE WHEN due > statement_timestamp() AND due < 'infinity' THEN due END AS until, tried, worker, error, payload`
	doneColumns = `item, attempts, 0::smallint, 'done', NULL::timestamptz, done_at, worker, NULL::text, payload`
)

func scanItem(row pgx.CollectableRow) (item Item, err error) {
	if len(row.FieldDescriptions()) == 2 {
		err = row.Scan(&item.Name, &item.Attempts)
		return item, err
	}
	// Types that pgx scans without reflection: pages are many rows.
	var state string
	var due, tried pgtype.Timestamptz
	var worker, text pgtype.Text
	err = row.Scan(&item.Name, &item.Attempts, &item.Priority, &state, &due, &tried, &worker, &text, (*[]byte)(&item.Payload))
	item.State, item.Due, item.Tried = State(state), due.Time.UTC(), tried.Time.UTC()
	item.Worker, item.Error = worker.String, text.String
	return item, err
}

func orZero[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
