package httpapi_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/httpapi"
)

// may6 is the span of four hours.
const may6 = "from=2025-05-06T09:00:00Z&to=2025-05-06T12:59:59Z&granularity=1h"

func withOrders(t *testing.T, cfg httpapi.Config) *server {
	t.Helper()
	s := serve(t, "", cfg)
	for hour, values := range map[int]string{
		9:  `{"count":1,"bytes":10,"by":{"a":1},"size":{"$hist":100},"who":{"$distinct":"x"},"stat":{"$stat":2}}`,
		10: `{"count":2,"bytes":30,"by":{"b":2},"stat":{"$stat":4}}`,
		12: `{"count":4,"big":123456789012345678901234567890.1}`,
	} {
		wantJSON(t, s.post("/v1/counters/keys/orders/track", fmt.Sprintf(`{"at":"2025-05-06T%02d:30:00Z","values":%s}`, hour, values)), `{"applied":1}`)
	}
	return s
}

func TestQueryKey(t *testing.T) {
	t.Parallel()
	s := withOrders(t, httpapi.Config{})
	const query = "/v1/counters/keys/orders/query?" + may6 + "&fn="
	const halves = `{"at":["2025-05-06T09:00:00Z","2025-05-06T11:00:00Z"],"values":`
	for asked, want := range map[string]string{
		"sum&path=count":                                        `{"at":["2025-05-06T09:00:00Z"],"values":[7]}`,
		"sum&path=count&slices=2":                               halves + `[3,4]}`,
		"mean&path=count&slices=2":                              halves + `[1.5,4]}`,
		"min&path=bytes&slices=2":                               halves + `[10,null]}`,
		"max&path=b*&slices=2":                                  halves + `[null,null]}`,
		"stddev&path=stat&slices=2":                             halves + `[1.414213562373095048801688724209698,null]}`,
		"quantile&path=size":                                    `{"at":["2025-05-06T09:00:00Z"],"values":[101]}`,
		"quantile&path=size&q=1":                                `{"at":["2025-05-06T09:00:00Z"],"values":[101]}`,
		"distinct&path=who&slices=2":                            halves + `[1,0]}`,
		"category&path=by&slices=2":                             halves + `[{"by.a":1,"by.b":2},{"by.a":0,"by.b":0}]}`,
		"timeline&path=bytes&slices=2":                          halves + `[{"bytes":[{"at":"2025-05-06T09:00:00Z","value":10},{"at":"2025-05-06T10:00:00Z","value":30}]},{"bytes":[{"at":"2025-05-06T11:00:00Z","value":0},{"at":"2025-05-06T12:00:00Z","value":0}]}]}`,
		"expression&paths=bytes,count&expr=a%2Fb&response=mean": `{"at":["2025-05-06T09:00:00Z","2025-05-06T10:00:00Z","2025-05-06T11:00:00Z","2025-05-06T12:00:00Z"],"values":[10,15,null,null]}`,
	} {
		wantJSON(t, s.get(query+asked), want)
	}
	if r := s.get(query + "sum&path=big"); !strings.Contains(r.body, "[123456789012345678901234567890.1]") {
		t.Errorf("%s", r.body) // to the last digit
	}
	wantJSON(t, s.get("/v1/counters/keys/orders/query?from=2&to=1&granularity=1h&fn=sum&path=count"), `{"at":[],"values":[]}`)
	for asked, refused := range map[string][2]string{
		"median&path=count":                {"sum, mean, min, max, stddev, quantile, distinct, timeline, category, expression", "query.fn"},
		"sum":                              {"missing; want the name of a field", "query.path"},
		"sum&path=count&slices=5":          {"5 of 4 points; want 1 to 4", "query.slices"},
		"sum&path=count&slices=0":          {"", "query.slices"},
		"quantile&path=size&q=1.01":        {"", "query.q"},
		"expression&paths=count&expr=a%2B": {"position 3: the expression ends", "query.expr"},
		"expression&expr=a":                {"0; want 1 to 26", "query.paths"},
		"expression&paths=%2A&expr=a":      {"no wildcards here", "query.paths"},
	} {
		wantProblem(t, s.get(query+asked), 400, refused[0], refused[1])
	}
	wantProblem(t, s.get("/v1/counters/keys/orders/query?from=0&to=200000&granularity=1s&fn=sum&path=count"), 400, "some 200001 points of 1s; at most 100000: ask for a shorter time, or a coarser granularity such as 1m", "query.granularity")
}

// Points come as a stream to who asks for one: those that are stored, however many.
func TestStreamOfPoints(t *testing.T) {
	t.Parallel()
	s := withOrders(t, httpapi.Config{})
	stream := func(query string) response {
		return s.do(http.MethodGet, "/v1/counters/keys/orders?"+query, nil, "Accept: application/x-ndjson")
	}
	r := stream("from=2002-01-01T00:00:00Z&to=2286-01-01T00:00:00Z&granularity=1h")
	const want = `{"at":"2025-05-06T10:00:00Z","values":{"by":{"b":2},"bytes":30,"count":2,"stat":{"count":1,"max":4,"min":4,"square":16,"sum":4}}}`
	if lines := strings.Split(r.body, "\n"); r.StatusCode != 200 || r.Header.Get("Content-Type") != "application/x-ndjson" || len(lines) != 4 || lines[1] != want {
		t.Errorf("%s %s", r.Status, r.body)
	}
	if r := stream("from=2&to=1&granularity=1h"); r.StatusCode != 200 || r.body != "" {
		t.Errorf("%s %q", r.Status, r.body)
	}
	wantProblem(t, stream("from=2&to=1&granularity=h"), 400, "s m h d w mo q y", "query.granularity")
	wantProblem(t, stream("from=x&to=1&granularity=1h"), 400, "want RFC 3339", "query.from")

	if _, err := s.db.Pool.Exec(t.Context(), `
		INSERT INTO trifle_stats (key, data)
		SELECT 'many::1s::' || 1746522900 + n, '{"n":1}'
		FROM generate_series(1, 100001) n`); err != nil {
		t.Fatal(err)
	}
	const many = "/v1/counters/keys/many?from=1746522901&to=1746622901&granularity=1s"
	wantProblem(t, s.get(many), 400, "100001 points of 1s; at most 100000: ask for a shorter time, or a coarser granularity such as 1m", "query.granularity")
	if r := s.do(http.MethodGet, many, nil, "Accept: application/x-ndjson"); strings.Count(r.body, "\n") != 100001 {
		t.Errorf("%d points", strings.Count(r.body, "\n"))
	}
}

func TestWatchAKey(t *testing.T) {
	t.Parallel()
	s := withOrders(t, httpapi.Config{})
	const watch = "/v1/counters/keys/orders/watch?granularity=1y"
	year := time.Now().UTC().Year()
	id := func(back int) string { return fmt.Sprintf("id: %d-01-01T00:00:00Z\nevent: bucket\ndata: ", year-back) }
	for i, e := range s.events(t, watch, 2) {
		if !strings.HasPrefix(e, id(1-i)) || !strings.Contains(e, `"values":{`) {
			t.Errorf("event %d: %s", i, e)
		}
	}
	// Who was away gets what was missed.
	for i, e := range s.events(t, watch, year-2021, "Last-Event-ID: 2022-01-01T00:00:00Z") {
		if !strings.HasPrefix(e, id(year-2022-i)) {
			t.Errorf("event %d: %s", i, e)
		}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // until it has been seen
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				s.post("/v1/counters/keys/orders/track", `{"values":{"seen":1}}`)
			}
		}
	}()
	all := s.events(t, watch, 4)
	close(stop)
	<-stopped
	for _, e := range all[2:] {
		if !strings.HasPrefix(e, id(0)) || !strings.Contains(e, `"seen":`) {
			t.Errorf("event %s", e)
		}
	}
	wantProblem(t, s.get("/v1/counters/keys/orders/watch?granularity=1x"), 400, "s m h d w mo q y", "query.granularity")
	wantProblem(t, s.do(http.MethodGet, watch, nil, "Last-Event-ID: noon"), 400, "want RFC 3339", "header.Last-Event-ID")
	wantProblem(t, s.get("/v1/counters/keys/%00/watch?granularity=1h"), 400, "a NUL byte", "path.key")
}

func TestWatchOfAKeyEndsWithTheServer(t *testing.T) {
	t.Parallel()
	ending := make(chan struct{})
	close(ending)
	s := serve(t, "", httpapi.Config{Ending: ending})
	all := s.events(t, "/v1/counters/keys/orders/watch?granularity=1y", 1)
	if e := all[0]; !strings.HasPrefix(e, "event: bye\n") && !strings.Contains(e, "event: bucket\n") {
		t.Errorf("event %s", e)
	}
}

// A metric is looked at once for all who watch it, and by nobody when they have left.
func TestWatchersShareAPoll(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	var reading, reads, overlaps atomic.Int64
	gone := errors.New("gone")
	polls := httpapi.NewPolls(func() (string, error) {
		if reading.Add(1) > 1 {
			overlaps.Add(1)
		}
		defer reading.Add(-1)
		switch n := reads.Add(1); {
		case n%7 == 0:
			return "", fmt.Errorf("for a moment: %w", fault.Unavailable)
		case n > 60:
			return "", gone
		default:
			return fmt.Sprint(n / 10), nil
		}
	})
	var ended []func()
	for range 20 {
		seen, leave := polls.Join(ctx, "orders")
		ended = append(ended, func() {
			defer leave()
			for last := ""; ; {
				text, err := seen()
				if err != nil {
					if !errors.Is(err, gone) {
						t.Error(err)
					}
					return
				}
				if text == last {
					t.Errorf("%s again", text)
				}
				last = text
			}
		})
	}
	if polls.Open() != 1 {
		t.Errorf("%d polls", polls.Open())
	}
	for _, end := range ended {
		end()
	}
	if polls.Open() != 0 || overlaps.Load() > 0 {
		t.Errorf("%d polls, %d reads at the same time as another", polls.Open(), overlaps.Load())
	}
}
