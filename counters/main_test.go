package counters_test

import (
	"testing"

	"github.com/howdah-db/howdah/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }
