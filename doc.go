// Package howdah turns the PostgreSQL people already run into backend services
// that share one transaction.
//
// The root package holds no logic of its own: it opens a database, puts the
// services side by side, and runs them in one transaction together with the
// caller's own SQL.
//
//	c, err := howdah.Open(ctx, "postgres://…")
//	err = c.Migrate(ctx)
//	err = c.Transact(ctx, func(tx pgx.Tx, s howdah.Services) error {
//		if _, err := tx.Exec(ctx, `INSERT INTO orders …`); err != nil {
//			return err
//		}
//		_, err := s.Checklists.Insert(ctx, "to pack", "order-17")
//		return err
//	})
//
// Each service is usable alone from its own package; see package checklists.
package howdah
