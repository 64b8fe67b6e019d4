package checklists

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ErrNoList reports that nothing is known of a list: it has no items, no
// settings and no counts.
var ErrNoList = fmt.Errorf("no such list: %w", fault.NotFound)

// Settings are how a list hands out its items.
type Settings struct {
	Paused      bool          // claims get nothing; all else goes on
	MaxAttempts int           // a failure after so many is the last; 0: none is
	Backoff     time.Duration // after the first failure; doubled with each further one
	BackoffMax  time.Duration // at most so long
	KeepDone    bool          // done items are kept, and not put on again
	MaxLeased   int           // at most so many items are leased at a time; 0: any number
	Rate        float64       // at most so many items are claimed a second; 0: any number
}

// DefaultSettings are those of a list for which none were set.
var DefaultSettings = Settings{MaxAttempts: 10, Backoff: 10 * time.Second, BackoffMax: time.Hour}

// MarshalJSON implements json.Marshaler: durations are written as Go writes
// them, "1m30s".
func (s Settings) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Paused      bool    `json:"paused"`
		MaxAttempts int     `json:"max_attempts"`
		Backoff     string  `json:"backoff"`
		BackoffMax  string  `json:"backoff_max"`
		KeepDone    bool    `json:"keep_done"`
		MaxLeased   int     `json:"max_leased"`
		Rate        float64 `json:"rate"`
	}{s.Paused, s.MaxAttempts, s.Backoff.String(), s.BackoffMax.String(), s.KeepDone, s.MaxLeased, s.Rate})
}

// maxBackoff keeps times within what the database can add up.
const maxBackoff = 10 * 365 * 24 * time.Hour

func (s Settings) check() error {
	switch {
	case s.MaxAttempts < 0 || s.MaxAttempts > math.MaxInt32:
		return pg.Refuse("max_attempts", "%d; want 0 (for ever) to 2147483647", s.MaxAttempts)
	case s.Backoff < 0 || s.Backoff > maxBackoff:
		return pg.Refuse("backoff", "%v; want 0 to %v", s.Backoff, maxBackoff)
	case s.BackoffMax < s.Backoff || s.BackoffMax > maxBackoff:
		return pg.Refuse("backoff_max", "%v; want backoff (%v) to %v", s.BackoffMax, s.Backoff, maxBackoff)
	case s.MaxLeased < 0 || s.MaxLeased > math.MaxInt32:
		return pg.Refuse("max_leased", "%d; want 0 (any number) to 2147483647", s.MaxLeased)
	case !(s.Rate >= 0 && s.Rate <= 1e9): // NaN is neither
		return pg.Refuse("rate", "%v; want 0 (any number) to 1e9", s.Rate)
	}
	return nil
}

// Settings returns the settings of list, or ErrNoList where nothing is known of
// it, or ErrPlain.
func (s *Store) Settings(ctx context.Context, list string) (Settings, error) {
	const op = "checklists: settings"
	if err := s.checkList(ctx, list); err != nil {
		return Settings{}, pg.Wrap(op, err)
	}
	var known bool
	var set Settings
	err := s.row(ctx, `
		SELECT `+isKnown+`, `+settingsColumns+`
		FROM (VALUES (1)) AS one(one)
		LEFT JOIN howdah.checklist c ON relation = {relation} AND list = $1`, []any{list}, append([]any{&known}, set.into()...)...)
	if err == nil && !known {
		err = ErrNoList
	}
	if err != nil {
		return Settings{}, pg.Wrap(op, err)
	}
	return set, nil
}

// isKnown is the condition that something is known of list $1: it has items,
// settings, or a past.
const isKnown = `(EXISTS (SELECT FROM {lists} WHERE list = $1)
			OR EXISTS (SELECT FROM howdah.checklist WHERE relation = {relation} AND list = $1)
			OR EXISTS (SELECT FROM howdah.checklist_done WHERE relation = {relation} AND list = $1)
			OR EXISTS (SELECT FROM howdah.checklist_count WHERE relation = {relation} AND list = $1
				HAVING sum(items) <> 0 OR sum(done) <> 0 OR sum(failed) <> 0))`

// settingsColumns are the settings of a row c, or DefaultSettings where there is
// none.
const settingsColumns = `coalesce(c.paused, false), coalesce(c.max_attempts, 10), coalesce(c.backoff, '10 seconds'), coalesce(c.backoff_max, '1 hour'),
			coalesce(c.keep_done, false), coalesce(c.max_leased, 0), coalesce(c.rate, 0)`

// into are the places of settingsColumns.
func (s *Settings) into() []any {
	return []any{&s.Paused, &s.MaxAttempts, &s.Backoff, &s.BackoffMax, &s.KeepDone, &s.MaxLeased, &s.Rate}
}

// Set gives list these settings, all of them, whether or not it has items yet.
// What cannot be is Invalid; a plain table has no settings: ErrPlain.
func (s *Store) Set(ctx context.Context, list string, set Settings) error {
	err := s.checkList(ctx, list)
	if err == nil {
		err = s.set(ctx, list, set)
	}
	return pg.Wrap("checklists: set", err)
}

func (s *Store) set(ctx context.Context, list string, set Settings) error {
	if err := set.check(); err != nil {
		return err
	}
	if set == DefaultSettings {
		_, err := s.runRinging(ctx, `DELETE FROM howdah.checklist WHERE relation = {relation} AND list = $1`, list)
		return err
	}
	_, err := s.runRinging(ctx, `
		INSERT INTO howdah.checklist (relation, list, paused, max_attempts, backoff, backoff_max, keep_done, max_leased, rate)
		VALUES ({relation}, $1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (relation, list) DO UPDATE
		SET paused = EXCLUDED.paused, max_attempts = EXCLUDED.max_attempts, backoff = EXCLUDED.backoff, backoff_max = EXCLUDED.backoff_max,
			keep_done = EXCLUDED.keep_done, max_leased = EXCLUDED.max_leased, rate = EXCLUDED.rate`,
		list, set.Paused, set.MaxAttempts, set.Backoff, set.BackoffMax, set.KeepDone, set.MaxLeased, set.Rate)
	return err
}

// Change lets change alter the settings of list, those that are usual where it has
// none, and returns what they are now. It is one transaction: of two that change
// different ones neither is lost. Errors are those of [Store.Set].
func (s *Store) Change(ctx context.Context, list string, change func(*Settings)) (set Settings, err error) {
	const op = "checklists: set"
	if err := s.checkList(ctx, list); err != nil {
		return Settings{}, pg.Wrap(op, err)
	}
	err = pg.Retry(ctx, s.db, func() error {
		return pg.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
			// What is written over with itself is locked, and made where it is missing.
			err := tx.QueryRow(ctx, s.sql(`
				INSERT INTO howdah.checklist AS c (relation, list)
				VALUES ({relation}, $1)
				ON CONFLICT (relation, list) DO UPDATE
				SET paused = c.paused
				RETURNING `+settingsColumns), list).Scan(set.into()...)
			if err != nil {
				return err
			}
			change(&set)
			return s.WithTx(tx).set(ctx, list, set)
		})
	})
	if err != nil {
		return Settings{}, pg.Wrap(op, s.told(err))
	}
	return set, nil
}

// Pause lets claims of list get nothing, or again what there is. Leases that are
// out go on. On a plain table it returns ErrPlain.
func (s *Store) Pause(ctx context.Context, list string, paused bool) error {
	const op = "checklists: pause"
	if err := s.checkList(ctx, list); err != nil {
		return pg.Wrap(op, err)
	}
	_, err := s.runRinging(ctx, `
		INSERT INTO howdah.checklist (relation, list, paused)
		VALUES ({relation}, $1, $2)
		ON CONFLICT (relation, list) DO UPDATE
		SET paused = EXCLUDED.paused`, list, paused)
	return pg.Wrap(op, err)
}

// checkList refuses what can be no list with settings.
func (s *Store) checkList(ctx context.Context, list string) error {
	if err := s.checkNew(list, []string{""}); err != nil {
		return err
	}
	return s.needColumns(ctx)
}
