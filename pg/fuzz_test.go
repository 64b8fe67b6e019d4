package pg_test

import (
	"strings"
	"testing"

	"github.com/howdah-db/howdah/pg"
)

// Whatever surrounds a password, an error of the parser does not tell it.
func FuzzAnUnparsableURLKeepsItsPassword(f *testing.F) {
	const secret = "s3cr3t"
	for _, seed := range [][2]string{
		{"postgres://u:", "@h:x/db"}, {"postgres://u:", " @h"}, {"postgresql://u:1", "/@h/db"}, {"host=h password=", " what"},
		{"password='", ""}, {"postgres://h/db?pool_max_conns=", ""}, {"postgres://u:%", "@h"}, {"postgres://u:[", "@h"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		if _, err := (pg.Config{URL: before + secret + after}).Direct(); err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", before+secret+after, err)
		}
	})
}
