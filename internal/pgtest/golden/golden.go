// Package golden has the scenarios of the feed for tests of every way to it: what connections
// do at the same time, and what the feed shows of it.
package golden

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/howdah-db/howdah/changes"
)

// Scenario is a script of concurrent connections, and what the feed shows of it.
type Scenario struct {
	Name    string   `json:"name"`
	Setup   []string `json:"setup"`
	Capture []struct {
		changes.Capture
		Fails bool `json:"fails"`
	} `json:"capture"`
	Script []Step `json:"script"`
	Expect struct {
		Transactions [][]map[string]json.RawMessage `json:"transactions"`
		Absent       []string                       `json:"absent"`
		Unordered    bool                           `json:"unordered"`
		Before       [][2]int                       `json:"before"`
	} `json:"expect"`
}

// Step is one of a script: a statement on a connection, or what the feed shows by then.
type Step struct {
	On, SQL       string
	Blocks, Await bool
	Error         string
	Mark          *string
	Changes       int
	Has           string
	HasNot        string `json:"has_not"`
}

// Load returns the scenarios of the files that a pattern names, by the name of the file.
func Load(t *testing.T, pattern string) map[string][]Scenario {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(paths), err)
	}
	all := map[string][]Scenario{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var some []Scenario
		d := json.NewDecoder(bytes.NewReader(text))
		if err := d.Decode(&some); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all[filepath.Base(path)] = some
	}
	return all
}

// Compare compares the feed with what is expected of it.
func (s *Scenario) Compare(t *testing.T, all []changes.Change) {
	t.Helper()
	var got [][]changes.Change
	for i, c := range all {
		if i == 0 || c.Position.Commit != all[i-1].Position.Commit {
			got = append(got, nil)
		}
		got[len(got)-1] = append(got[len(got)-1], c)
		last := i+1 == len(all) || all[i+1].Position.Commit != c.Position.Commit
		if c.Last != last {
			t.Errorf("%s: last = %v, want %v", c.Position, c.Last, last)
		}
		if i > 0 && c.Position.Compare(all[i-1].Position) <= 0 {
			t.Errorf("%s follows %s", c.Position, all[i-1].Position)
		}
	}
	text, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	for _, absent := range s.Expect.Absent {
		if strings.Contains(string(text), absent) {
			t.Errorf("the feed contains %q", absent)
		}
	}
	want := s.Expect.Transactions
	if len(got) != len(want) {
		t.Fatalf("%d transactions, want %d: %s", len(got), len(want), text)
	}
	if !s.Expect.Unordered {
		for i := range want {
			if problem := differs(want[i], got[i]); problem != "" {
				t.Errorf("transaction %d: %s", i, problem)
			}
		}
		return
	}
	place := make([]int, len(want)) // of each expected one in the feed
	taken := map[int]bool{}
	for i := range want {
		place[i] = slices.IndexFunc(got, func(tx []changes.Change) bool {
			return !taken[slices.IndexFunc(got, func(o []changes.Change) bool { return &o[0] == &tx[0] })] && differs(want[i], tx) == ""
		})
		if place[i] < 0 {
			t.Fatalf("transaction %d is not in the feed: %s", i, text)
		}
		taken[place[i]] = true
	}
	for _, pair := range s.Expect.Before {
		if place[pair[0]] > place[pair[1]] {
			t.Errorf("transaction %d comes after %d", pair[0], pair[1])
		}
	}
}

// differs says how a transaction differs from what is wanted.
func differs(want []map[string]json.RawMessage, got []changes.Change) string {
	i := 0
	for _, w := range want {
		count := 1
		if c, ok := w["count"]; ok {
			if err := json.Unmarshal(c, &count); err != nil {
				return err.Error()
			}
		}
		for range count {
			if i == len(got) {
				return fmt.Sprintf("%d changes, want more", len(got))
			}
			if problem := differ(w, got[i]); problem != "" {
				return fmt.Sprintf("change %d: %s", i, problem)
			}
			i++
		}
	}
	if i < len(got) {
		return fmt.Sprintf("%d changes, want %d", len(got), i)
	}
	return ""
}

func differ(want map[string]json.RawMessage, got changes.Change) string {
	text, err := json.Marshal(got)
	if err != nil {
		return err.Error()
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return err.Error()
	}
	_, counted := want["count"]
	for name, value := range want {
		switch {
		case name == "count":
		case name == "origin" && string(value) == `""`:
			if fields[name] != nil {
				return fmt.Sprintf("has an origin: %s", text)
			}
		case !SameJSON(value, fields[name]):
			return fmt.Sprintf("%s = %s, want %s", name, fields[name], value)
		}
	}
	if want["schema"] == nil && got.Schema != "chk" {
		return "schema " + got.Schema
	}
	if counted {
		return ""
	}
	for name := range fields {
		switch name {
		case "position", "at", "xid", "last", "schema", "origin":
		default:
			if want[name] == nil {
				return fmt.Sprintf("has %s: %s", name, fields[name])
			}
		}
	}
	return ""
}

// SameJSON compares by value, numbers digit for digit.
func SameJSON(a, b json.RawMessage) bool {
	value := func(text json.RawMessage) (v any) {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		if d.Decode(&v) != nil {
			return fmt.Sprintf("no JSON: %s", text)
		}
		return v
	}
	return cmp.Equal(value(a), value(b))
}
