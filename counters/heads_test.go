package counters_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// The granularities of a metric are found among whatever keys begin as its own do.
func TestHeadsAmongOthers(t *testing.T) {
	t.Parallel()
	for _, mode := range []counters.Mode{counters.Full, counters.Partial} {
		for _, separator := range []string{"::", ".", "-", "o", "→"} {
			t.Run(fmt.Sprint(mode, separator), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				seed := rand.Uint64()
				random := rand.New(rand.NewPCG(seed, 0))
				s, pool := newStore(t, counters.Config{Mode: mode, Separator: separator, System: counters.Off})
				one := func(of ...string) string { return of[random.IntN(len(of))] }
				number := func() string {
					return one("", "0", "00", "1") + strconv.Itoa(random.IntN([]int{10, 50, 5_000_000}[random.IntN(3)]))
				}
				label := func() string { return number() + one("s", "m", "h", "d", "w", "mo", "q", "y") }
				own := map[counters.Granularity]bool{}
				keys := map[string]bool{}
				for range 300 {
					switch g := label(); random.IntN(3) {
					case 0: // its own, and those of a metric whose name begins so
						of := "k" + one("", separator+number(), separator+label(), separator+number()+one("-", "/", "a", "days", "mob", "z", "é", ""))
						keys[of+separator+g] = true
					case 1:
						keys["k"+separator+number()+one("-x", "ab", "days", "m", "moo", "zz", "é", separator)+separator+g] = true
					case 2:
						keys["k"+one("", "0", separator)+g] = true
					}
				}
				for key := range keys {
					var name string
					var g counters.Granularity
					var ok bool
					if mode == counters.Full {
						key += separator + one("1746522000", "0", "-86400", "99999999999")
						name, g, _, ok = counters.SplitFull(separator, key)
						execute(t, pool, `INSERT INTO trifle_stats (key) VALUES ($1) ON CONFLICT DO NOTHING`, key)
					} else {
						name, g, ok = counters.SplitPartial(separator, key)
						execute(t, pool, `INSERT INTO trifle_stats (key, at) VALUES ($1, to_timestamp(1746522000))`, key)
					}
					if ok && name == "k" {
						own[g] = true
					}
				}
				got, err := s.HeadsOf(ctx, "k")
				if diff := cmp.Diff(slices.Sorted(maps.Keys(own)), slices.Sorted(slices.Values(got))); diff != "" || err != nil {
					t.Errorf("seed %d: %v, (-want +got):\n%s", seed, err, diff)
				}
			})
		}
	}
}

// Looking up a metric takes a step for each number that others have in their names, and
// not for each of their rows, or granularities.
func TestHeadsBesideManyNumbers(t *testing.T) {
	t.Parallel()
	const numbers = 400
	for _, mode := range []counters.Mode{counters.Full, counters.Partial} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			_, pool := newStore(t, counters.Config{Mode: mode})
			row := map[counters.Mode]string{
				counters.Full:    `m || '::' || g || '::' || h`,
				counters.Partial: `m || '::' || g, to_timestamp(h)`,
			}[mode]
			execute(t, pool, fmt.Sprintf(`
				INSERT INTO trifle_stats
				SELECT %s, '{"n": 1}'
				FROM (
					SELECT 'http::' || i FROM generate_series(1, %d) AS i UNION ALL
					SELECT 'http::1234567' || i FROM generate_series(1, %[2]d) AS i UNION ALL
					SELECT 'http') AS metrics(m), (VALUES ('1m'), ('1h'), ('1d'), ('1mo')) AS v(g), generate_series(1746522000, 1746522004) AS h`, row, numbers))
			execute(t, pool, `VACUUM ANALYZE trifle_stats`)
			s := counters.New(pool, counters.Config{})
			if _, err := s.Settings(ctx); err != nil { // the look at the table is not to be explained
				t.Fatal(err)
			}
			explained := pgtest.Explain(t, pool)
			if heads, err := s.WithTx(explained).HeadsOf(ctx, "http"); err != nil || len(heads) != 4 {
				t.Fatalf("%v, %v", heads, err)
			}
			plan := explained.Plan()
			steps := 0
			for _, m := range regexp.MustCompile(`WorkTable Scan on walk.* loops=(\d+)\)`).FindAllStringSubmatch(plan, -1) {
				n, _ := strconv.Atoi(m[1])
				steps += n
			}
			if most := numbers + 20; steps < 4 || steps > most {
				t.Errorf("%d steps, want at most %d:\n%s", steps, most, plan)
			}
		})
	}
}
