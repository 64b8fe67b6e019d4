package counters_test

import (
	"encoding/json"
	"testing"

	"github.com/howdah-db/howdah/counters"
)

func TestLeavesAsCompatible(t *testing.T) {
	t.Parallel()
	for _, c := range golden[struct {
		Cases []struct {
			Value  json.Number
			Bucket string
		}
	}](t, "histogram.json").Cases {
		if got := counters.BucketOf(number(c.Value)); got != c.Bucket {
			t.Errorf("the bucket of %s is %s, want %s", c.Value, got, c.Bucket)
		}
	}
	for _, c := range golden[struct {
		Cases []struct {
			Member, Register string
			Rank             int64
		}
	}](t, "distinct.json").Cases {
		if register, rank := counters.RegisterOf(c.Member); register != c.Register || rank != c.Rank {
			t.Errorf("%.20q is in register %s with rank %d, want %s and %d", c.Member, register, rank, c.Register, c.Rank)
		}
	}
}
