package counters_test

import (
	"encoding/json"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/counters"
)

// sums are what is known of a log: of each granularity, by the starts of buckets.
type sums map[counters.Granularity]map[string]bucketSums

type bucketSums struct {
	Requests, Bytes int64
	Status, Method  map[string]int64
	Hosts           int64              `json:"exact_hosts"`
	Sizes           map[string]float64 `json:"exact_size_quantiles"`
}

const smallLog = `198.51.100.1 - - [17/May/2015:23:59:59 +0000] "GET / HTTP/1.1" 200 1000 "-" "a"
198.51.100.2 - - [18/May/2015:00:00:00 +0000] "GET /a HTTP/1.1" 200 3000 "-" "a"

198.51.100.2 - bob [18/May/2015:00:30:00 +0000] "HEAD /a HTTP/1.1" 304 - "-" "a"
198.51.100.3 - - [18/May/2015:02:30:00 +0200] "\x16\x03" 400 0 "-" "no end
`

var smallSums = sums{
	"1mo": {"1430438400": {4, 4000, map[string]int64{"2xx": 2, "3xx": 1, "4xx": 1}, map[string]int64{"GET": 2, "HEAD": 1, "other": 1}, 3, map[string]float64{"0.5": 1000, "1": 3000}}},
	"1d": {
		"1431820800": {Requests: 1, Bytes: 1000, Status: map[string]int64{"2xx": 1}, Method: map[string]int64{"GET": 1}},
		"1431907200": {Requests: 3, Bytes: 3000, Status: map[string]int64{"2xx": 1, "3xx": 1, "4xx": 1}, Method: map[string]int64{"GET": 1, "HEAD": 1, "other": 1}},
	},
	"1h": {"1431903600": {Requests: 1, Bytes: 1000, Status: map[string]int64{"2xx": 1}, Method: map[string]int64{"GET": 1}}},
}

// A log gives the sums that are known of it, with its distinct hosts and quantiles
// about right.
func TestSumsOfALog(t *testing.T) {
	t.Parallel()
	wantSums(t, strings.NewReader(smallLog), smallSums)
	log, err := os.Open("../../shared/data/access.log.gz")
	if os.IsNotExist(err) {
		return
	}
	text, err := os.ReadFile("../../shared/golden/trifle/access_log.json")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	known := sums{}
	for _, g := range []counters.Granularity{"1mo", "1d", "1h"} {
		var buckets map[string]bucketSums
		if err := json.Unmarshal(all[string(g)], &buckets); err != nil {
			t.Fatal(err)
		}
		known[g] = buckets
	}
	wantSums(t, log, known)
}

func wantSums(t *testing.T, log io.Reader, known sums) {
	t.Helper()
	s, _ := newStore(t, counters.Config{})
	done, err := s.ApplyAll(t.Context(), counters.ReadAccess(log, "web"), counters.ApplyOptions{Once: "may"})
	if err != nil {
		t.Fatal(err)
	}
	for g, buckets := range known {
		for start, want := range buckets {
			at, err := strconv.ParseInt(start, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			series, err := s.Values(t.Context(), counters.Query{Key: "web", From: time.Unix(at, 0), To: time.Unix(at, 0), Granularity: g})
			if err != nil {
				t.Fatal(err)
			}
			got := bucketSums{Hosts: want.Hosts, Sizes: want.Sizes, Status: map[string]int64{}, Method: map[string]int64{}}
			for path, into := range map[string]*int64{"requests": &got.Requests, "bytes": &got.Bytes} {
				n, err := series.Aggregate(counters.FnSum, path, 1)
				if err != nil {
					t.Fatal(err)
				}
				*into, _ = n[0].Int64()
			}
			for path, into := range map[string]map[string]int64{"status": got.Status, "method": got.Method} {
				found, err := series.Category(path, 1)
				if err != nil {
					t.Fatal(err)
				}
				for name, n := range found[0] {
					into[strings.TrimPrefix(name, path+".")], _ = n.Int64()
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", g, start, diff)
			}
			if want.Hosts > 0 {
				hosts, err := series.Distinct("visitors", 1)
				if err != nil || math.Abs(float64(hosts[0])-float64(want.Hosts)) > 0.1*float64(want.Hosts) {
					t.Errorf("%s %s: %v hosts, %v; want about %d", g, start, hosts, err, want.Hosts)
				}
				if done.Applied != want.Requests || done.Refused > 0 {
					t.Errorf("%+v of %d lines", done, want.Requests)
				}
			}
			for share, size := range want.Sizes {
				q, err := strconv.ParseFloat(share, 64)
				if err != nil {
					t.Fatal(err)
				}
				n, err := series.Quantile(q, "size", 1)
				if err != nil || math.Abs(n[0].Float64()-size) > 0.0125*size {
					t.Errorf("%s %s: %v of the sizes are up to %v, %v; want about %v", g, start, q, n, err, size)
				}
			}
		}
	}
}
