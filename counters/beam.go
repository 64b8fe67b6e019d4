package counters

import (
	"context"
	"errors"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Beam keeps v as the last known state of key, in the ping table, in the place of
// what was known before. A state of an earlier time than the one that is known
// changes nothing.
func (s *Store) Beam(ctx context.Context, key string, at time.Time, v Values) error {
	return pg.Wrap("counters: beam", s.beam(ctx, key, at, v))
}

func (s *Store) beam(ctx context.Context, key string, at time.Time, v Values) error {
	t, err := s.beamed(ctx, key)
	if err != nil {
		return err
	}
	if err := checkTime("at", at); err != nil {
		return err
	}
	fields, err := t.paths.pack(v, OpPut)
	if err != nil {
		return err
	}
	stored := []field{{path: "at", op: OpPut, other: at.UTC().Format("2006-01-02 15:04:05 UTC")}}
	for _, f := range fields {
		f.path = "data." + f.path
		stored = append(stored, f)
	}
	err = pg.Retry(ctx, s.db, func() error {
		_, err := s.db.Exec(ctx, s.names.SQL(`
			INSERT INTO {ping} AS t (key, at, data)
			VALUES ($1, $2, $3)
			ON CONFLICT (key) DO UPDATE
			SET at = EXCLUDED.at, data = EXCLUDED.data
			WHERE t.at <= EXCLUDED.at`), key, at, string(appendFields(nil, stored, OpPut)))
		return err
	})
	return pg.Written(s.db, s.told(err))
}

// Scan returns when a state of key was last told, and that state, or [ErrNoBeam].
func (s *Store) Scan(ctx context.Context, key string) (time.Time, Values, error) {
	at, v, err := s.scan(ctx, key)
	return at, v, pg.Wrap("counters: scan", err)
}

func (s *Store) scan(ctx context.Context, key string) (at time.Time, v Values, err error) {
	t, err := s.beamed(ctx, key)
	if err != nil {
		return at, nil, err
	}
	var data []byte
	err = pg.Retry(ctx, s.db, func() error {
		return s.db.QueryRow(ctx, s.names.SQL(`
			SELECT at, data
			FROM {ping}
			WHERE key = $1`), key).Scan(&at, &data)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return at, nil, ErrNoBeam
	}
	if err != nil {
		return at, nil, s.told(err)
	}
	stored, err := newUnpacker(t.paths).unpack(data)
	if err != nil {
		return at, nil, err
	}
	v, _ = stored["data"].(Values)
	if v == nil {
		v = Values{}
	}
	return at.In(t.calendar.Location), v, nil
}

// beamed returns the table, where it has a ping table and key may be in it.
func (s *Store) beamed(ctx context.Context, key string) (*table, error) {
	t, err := s.table(ctx)
	if err != nil {
		return nil, err
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if n := utf8.RuneCountInString(key); n > maxKey {
		return nil, pg.Refuse("key", "%d characters; at most %d", n, maxKey)
	}
	if !t.ping {
		now := time.Now()
		if t, err = s.look(ctx); err != nil { // it may have been made meanwhile
			return nil, err
		}
		if t == nil || !t.ping {
			return nil, pg.Refuse("table", "there is no %s; howdah counters setup makes it", s.names.SQL("{ping}"))
		}
		s.keep(t, now)
	}
	return t, nil
}
