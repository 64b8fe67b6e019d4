package changes

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
)

// SQL returns a Handler that runs stmt once for each change, in the transaction of
// the consumer: $1 is the change as JSON, as in "SELECT apply_change($1::jsonb)".
// So a function of the database is called exactly once for each change.
func SQL(stmt string) Handler {
	return func(ctx context.Context, tx pgx.Tx, cs []Change) error {
		var batch pgx.Batch
		for i := range cs {
			if !strings.Contains(stmt, "$1") { // it wants to know that something happened, not what
				batch.Queue(stmt)
				continue
			}
			text, err := jsonText(&cs[i])
			if err != nil {
				return err
			}
			batch.Queue(stmt, text)
		}
		return tx.SendBatch(ctx, &batch).Close()
	}
}
