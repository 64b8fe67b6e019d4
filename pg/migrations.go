package pg

import "io/fs"

// Migrations are the numbered SQL files of one store. Package pg/migrate runs
// them; a service only says which they are, so that its users link no migrator.
type Migrations struct {
	// Service names the version table, howdah.<Service>_version: lower-case
	// letters, digits and underscores.
	Service string
	// About is kept as the version table's comment.
	About string
	// Files holds NNN_what.sql, numbered from 001 without gaps; each runs in a
	// transaction of its own.
	Files fs.FS
	// Names are the template data of the files: see [Names.Data].
	Names Names
}
