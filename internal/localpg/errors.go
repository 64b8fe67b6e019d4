package localpg

import (
	"fmt"

	"github.com/howdah-db/howdah/fault"
)

// oldest is the first major version that howdah works with.
const oldest = 14

// ErrNoPostgres reports that no usable PostgreSQL was found on this machine and
// none could be fetched. Its text names the ways out.
var ErrNoPostgres = fmt.Errorf("no PostgreSQL %d or newer here: install PostgreSQL, "+
	"or set HOWDAH_PG_BIN to the directory of its programs initdb and postgres, "+
	"or give the URL of a running server (--database-url or DATABASE_URL): %w", oldest, fault.Unavailable)

// ErrVersion reports that the data directory belongs to another major version
// of PostgreSQL than every one found here. The data is left as it is.
var ErrVersion = fmt.Errorf("the data directory is of another major version: %w", fault.Conflict)
