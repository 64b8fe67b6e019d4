package changes

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// SQL returns a Handler that runs stmt once for each change, in the transaction of
// the consumer: $1 is the change as JSON, as in "SELECT apply_change($1::jsonb)".
// So a function of the database is called exactly once for each change.
func SQL(stmt string) Handler {
	var known atomic.Pointer[pgconn.StatementDescription]
	return func(ctx context.Context, tx pgx.Tx, cs []Change) (err error) {
		described := known.Load()
		if described == nil { // the server knows a parameter from what is in a literal or a comment
			if described, err = tx.Prepare(ctx, "", stmt); err != nil {
				return err
			}
			known.Store(described)
		}
		var batch pgx.Batch
		for i := range cs {
			if len(described.ParamOIDs) == 0 { // it wants to know that something happened, not what
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
