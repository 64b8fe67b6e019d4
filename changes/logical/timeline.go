package logical

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
)

// follow has w go on where the source did after a failover, in another history: ErrLost
// where the log has more than that has of the one before. What commits there has the
// places in the WAL of what was lost, and would be taken for it.
func (s *source) follow(ctx context.Context, w *writer) error {
	if s.timeline < w.timeline { // as each new one is the highest
		return fmt.Errorf("the source is at timeline %d, and the log has followed it to %d: it is no primary any more", s.timeline, w.timeline)
	}
	left, known, err := s.left(ctx, w.timeline)
	switch {
	case err != nil:
		return err
	case !known:
		return fmt.Errorf("%w: the source is at timeline %d, which does not come of %d, where it was", ErrLost, s.timeline, w.timeline)
	case w.at >= left:
		return fmt.Errorf("%w: the source failed over at %s, and the log has what committed before at %s, which is not there any more", ErrLost, left, w.at)
	}
	return w.turn(ctx, s.timeline, min(w.told, left))
}

// left returns where the history of the source left a timeline; known is false where it
// does not come of that.
func (s *source) left(ctx context.Context, timeline int32) (at pglogrepl.LSN, known bool, err error) {
	history, err := pglogrepl.TimelineHistory(ctx, s.stream, s.timeline)
	if err != nil {
		return 0, false, err
	}
	for line := range strings.Lines(string(history.Content)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == strconv.Itoa(int(timeline)) {
			at, err = pglogrepl.ParseLSN(f[1])
			return at, err == nil, err
		}
	}
	return 0, false, nil
}

// turn notes that the log follows another timeline, which has what the slot was told up
// to told.
func (w *writer) turn(ctx context.Context, timeline int32, told pglogrepl.LSN) error {
	turned, err := w.db.Exec(ctx, `
		UPDATE howdah.change_pump
		SET timeline = $4, confirmed = $5::text::pg_lsn
		WHERE system = $1 AND slot = $2 AND lsn = $3::text::pg_lsn AND timeline = $6`, w.system, w.slot, w.at.String(), timeline, told.String(), w.timeline)
	switch {
	case err != nil:
		return err
	case turned.RowsAffected() == 0:
		return errTaken
	}
	w.timeline, w.told = timeline, told
	return nil
}
