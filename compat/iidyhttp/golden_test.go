package iidyhttp_test

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/howdah-db/howdah/httpapi"
	"github.com/howdah-db/howdah/internal/pgtest"
)

// exchange is a request to both generations of the original, and their answers.
type exchange struct {
	Name, Method string
	ContentType  string `json:"content_type"`
	Body         *string
	Seed, Head   struct {
		Path   string
		Status int
		Type   string `json:"Content-Type"`
		Allow  string
		Last   string `json:"X-Iidy-Last-Item"`
		Body   string
		Cut    string
	}
	// Want is what a defect of theirs is mended to.
	Want *struct {
		Status int
		Body   *string
	}
}

func exchanges(t *testing.T) []exchange {
	t.Helper()
	f, err := os.Open("../../checklists/testdata/compat/http.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []exchange
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var x exchange
		if err := json.Unmarshal(lines.Bytes(), &x); err != nil {
			t.Fatal(err)
		}
		all = append(all, x)
	}
	if err := lines.Err(); err != nil || len(all) != 43 {
		t.Fatalf("%d exchanges, %v, want 43", len(all), err)
	}
	return all
}

// Requests on the paths of either generation get the answer of the later one, but
// for its defects; on a table of the original too.
func TestAnswersAreTheOriginals(t *testing.T) {
	t.Parallel()
	seed := func(x exchange) string { return x.Seed.Path }
	head := func(x exchange) string { return x.Head.Path }
	for _, tc := range []struct {
		name, table string
		path        func(exchange) string
	}{
		{"paths of 2022", "", seed},
		{"paths of 2025", "", head},
		{"table of the original", `
			CREATE SCHEMA iidy;
			CREATE TABLE iidy.lists (list text NOT NULL, item text NOT NULL, attempts integer NOT NULL DEFAULT 0,
				CONSTRAINT list_pk PRIMARY KEY (list, item))`, head},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			if _, err := pgtest.Pool(t, url).Exec(within(t), tc.table); err != nil {
				t.Fatal(err)
			}
			s := serve(t, url, httpapi.Config{LoopbackOnly: true})
			for _, x := range exchanges(t) {
				var body io.Reader
				if x.Body != nil {
					body = strings.NewReader(*x.Body)
				}
				var headers []string
				if x.ContentType != "" {
					headers = []string{"Content-Type: " + x.ContentType}
				}
				compare(t, x, s.do(x.Method, tc.path(x), body, headers...))
			}
		})
	}
}

func compare(t *testing.T, x exchange, got response) {
	t.Helper()
	status, body, told := x.Head.Status, x.Head.Body, true // told: its text is ours to choose where only a status is wanted
	if x.Want != nil {
		status, told = x.Want.Status, x.Want.Body != nil
		if told {
			body = *x.Want.Body
		}
	}
	if got.StatusCode != status || told && got.body != body {
		t.Errorf("%s: %d %q, want %d %q", x.Name, got.StatusCode, got.body, status, body)
	}
	form := "text/plain; charset=utf-8"
	if strings.HasPrefix(x.ContentType, "application/json") {
		form = "application/json; charset=utf-8"
	}
	for name, want := range map[string]string{
		"Content-Type": form, "X-Content-Type-Options": "nosniff", "X-IIDY-Last-Item": x.Head.Last, "Allow": x.Head.Allow, "Location": "",
	} {
		if value := got.Header.Get(name); value != want {
			t.Errorf("%s: %s %q, want %q", x.Name, name, value, want)
		}
	}
}
