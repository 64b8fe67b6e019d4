package checklists

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

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

	StateLeft State = "left" // in queries only: ready, waiting or leased
)

// States are the names of all states that can be asked for.
var States = []string{string(StateReady), string(StateWaiting), string(StateLeased), string(StateDead), string(StateDone), string(StateLeft)}

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

// The columns of items: of a plain table, of howdah's, of what is done. Most items
// of most pages wait for their first claim: what those have nothing of is one
// column, as NULL, because each column of a page costs.
const (
	plainColumns = `item, attempts`
	fullColumns  = `item, attempts, payload,
			CASE WHEN due > statement_timestamp() OR tried IS NOT NULL OR priority <> 0 OR error IS NOT NULL
			THEN json_build_object('priority', priority, 'state', ` + stateOf + `,
				'due', CASE WHEN due > statement_timestamp() AND due < 'infinity' THEN due END,
				'tried', tried, 'worker', worker, 'error', error) END AS more`
	doneColumns = `item, attempts, payload, json_build_object('state', 'done', 'tried', done_at, 'worker', worker) AS more`
)

// itemScanner reads rows of those columns, each into the same places: new ones for
// every row take half as long again.
type itemScanner struct {
	rows pgx.Rows
	item Item
	more []byte
	into []any
}

func newItemScanner(rows pgx.Rows) *itemScanner {
	s := &itemScanner{rows: rows}
	s.into = []any{&s.item.Name, &s.item.Attempts, (*[]byte)(&s.item.Payload), &s.more}
	s.into = s.into[:len(rows.FieldDescriptions())]
	return s
}

// scan returns the item of the row that is next.
func (s *itemScanner) scan() (Item, error) {
	if err := s.rows.Scan(s.into...); err != nil {
		return Item{}, err
	}
	item := s.item
	if len(s.into) > 2 {
		item.State = StateReady
	}
	if s.more == nil {
		return item, nil
	}
	err := json.Unmarshal(s.more, &item)
	item.Due, item.Tried = item.Due.UTC(), item.Tried.UTC()
	return item, err
}

func orZero[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
