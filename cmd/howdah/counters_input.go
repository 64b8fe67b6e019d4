package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/howdah-db/howdah/counters"
	"github.com/howdah-db/howdah/pg"
)

// readFields reads FIELD=VALUE; a dot in a field goes down a level.
func readFields(args []string, read func(string) (any, error)) (counters.Values, error) {
	values := counters.Values{}
	for _, arg := range args {
		name, text, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return nil, pg.Refuse("field", "%q; want NAME=VALUE", arg)
		}
		if _, ok := values[name]; ok {
			return nil, pg.Refuse(name, "given twice")
		}
		v, err := read(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		values[name] = v
	}
	return values, nil
}

// readAmount reads a number, which the store checks.
func readAmount(text string) (any, error) { return json.Number(text), nil }

// readAny reads a value: JSON if it is that, else text.
func readAny(text string) (any, error) {
	var v counters.Values
	if err := v.UnmarshalJSON([]byte(`{"v":` + text + `}`)); err != nil || len(v) != 1 {
		return text, nil
	}
	return v["v"], nil
}

// readLeaf reads a number, or kind:value.
func readLeaf(text string) (any, error) {
	kind, value, ok := strings.Cut(text, ":")
	switch {
	case !ok:
		return readAmount(text)
	case kind == "distinct":
		return counters.ParseLeaf(kind, value)
	case kind == "put":
		v, err := readAny(value)
		if err != nil {
			return nil, err
		}
		return counters.ParseLeaf(kind, v)
	}
	return counters.ParseLeaf(kind, json.Number(value))
}

// tableTime reads a time: RFC 3339, Unix seconds, a date in the table's zone, -24h, or now.
func tableTime(ctx context.Context, s *counters.Store, flag, text string) (time.Time, error) {
	if text == "now" {
		return time.Now(), nil
	}
	if t, err := counters.ParseTime(text); err == nil {
		return t, nil
	}
	if d, err := time.ParseDuration(text); err == nil && strings.HasPrefix(text, "-") {
		return time.Now().Add(d), nil
	}
	day, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return day, pg.Refuse(flag, "%q; want RFC 3339, a date, Unix seconds, -24h or now", text)
	}
	set, err := s.Settings(ctx)
	if err != nil {
		return day, err
	}
	loc, err := counters.LoadLocation(set.TimeZone)
	if err != nil {
		return day, err
	}
	noon := time.Date(day.Year(), day.Month(), day.Day(), 12, 0, 0, 0, loc) // not every day has a midnight
	return counters.Calendar{Location: loc}.Floor("1d", noon), nil
}
