package counters_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/fault"
)

func TestParseAccess(t *testing.T) {
	t.Parallel()
	const clock = ` [17/May/2015:10:05:03 +0200] `
	for line, want := range map[string]string{
		`h - -` + clock + `"GET /a.png HTTP/1.1" 200 2326 "http://r/" "agent"`: `{"bytes":2326,"method":{"GET":1},"requests":1,"size":{"$hist":2326},"status":{"2xx":1},"visitors":{"$distinct":"h"}}`,
		`h - -` + clock + `"GET / HTTP/1.1" 304 - "-" "no end`:                 `{"bytes":0,"method":{"GET":1},"requests":1,"status":{"3xx":1},"visitors":{"$distinct":"h"}}`,
		`::1 - al ice [x] ` + clock + `"POST / HTTP/1.1" 500 0`:                `{"bytes":0,"method":{"POST":1},"requests":1,"status":{"5xx":1},"visitors":{"$distinct":"::1"}}`,
		`h - -` + clock + `"" 400 1`:                                           `{"bytes":1,"method":{"other":1},"requests":1,"size":{"$hist":1},"status":{"4xx":1},"visitors":{"$distinct":"h"}}`,
		`h - -` + clock + `"get /" 499 001`:                                    `{"bytes":1,"method":{"other":1},"requests":1,"size":{"$hist":1},"status":{"4xx":1},"visitors":{"$distinct":"h"}}`,
		`h - -` + clock + `"ABCDEFGHIJKLMNOPQ /" 200 0`:                        `{"bytes":0,"method":{"other":1},"requests":1,"status":{"2xx":1},"visitors":{"$distinct":"h"}}`,
		`h - -` + clock + `"GET /\"a\\" 200 0 "-"`:                             `{"bytes":0,"method":{"GET":1},"requests":1,"status":{"2xx":1},"visitors":{"$distinct":"h"}}`,
	} {
		e, err := counters.ParseAccess(line)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		text, err := e.Values.MarshalJSON()
		if diff := cmp.Diff(want, string(text)); diff != "" || err != nil || e.At.Unix() != 1431849903 {
			t.Errorf("%s: %v, %v\n%s", line, e.At, err, diff)
		}
	}
	for line, want := range map[string]string{
		"":                                 "no host ident user",
		"a b c d e f g":                    "no host ident user",
		`h -` + clock + `"GET /" 200 1`:    "no host ident user",
		`h - -` + clock + `"GET /" 200`:    "no host ident user",
		`h - -` + clock + `"GET / 200 1`:   "no host ident user",
		`h - -` + clock + `"GET /" 2x0 1`:  `status: "2x0"`,
		`h - -` + clock + `"GET /" 200 -1`: `bytes: "-1"`,
		`h - -` + clock + `"GET /" 200 ` + strings.Repeat("9", 99): "bytes: \"999",
		`h - - [17/Mai/2015:10:05:03 +0200] "GET /" 200 1`:         "time: \"17/Mai",
		`h - - [17/May/0000:10:05:03 +0200] "GET /" 200 1`:         "time: \"17/May/0000",
		"\xff - -" + clock + `"GET /" 200 1`:                       "host: ",
	} {
		if _, err := counters.ParseAccess(line); err == nil || !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", line, err, want)
		}
	}
}

// What is read of a line can be counted, whatever the line.
func FuzzParseAccess(f *testing.F) {
	f.Add(`h - - [17/May/2015:10:05:03 +0200] "GET /a.png HTTP/1.1" 200 2326 "http://r/" "agent"`)
	f.Add(`h - - [17/May/2015:10:05:03 +0200] "\"\\" 304 - "-" "no end`)
	f.Add("\x00 - u [] [01/Jan/0001:00:00:00 +1400] \"\" 000 0")
	f.Fuzz(func(t *testing.T, line string) {
		e, err := counters.ParseAccess(line)
		if err != nil {
			return
		}
		if _, err := counters.Raw.Pack(e.Values, counters.OpAdd); err != nil {
			t.Errorf("%q: %v", line, err)
		}
	})
}
