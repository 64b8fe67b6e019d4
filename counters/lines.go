package counters

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// ReadEvents returns the events of r, read as they are asked for: an object a line.
//
//	{"key":"orders","at":"2025-05-06T09:15:00Z","values":{"count":1},"id":"o-17","op":"track","untracked":false}
//
// at is RFC 3339 or Unix seconds, op is track, the default, or assert, and values are as
// [ParseValues] reads them. A line without a key is of the metric key.
//
// What gzip has packed is unpacked. Blank lines are passed over. A line that is wrong,
// or longer than 1 MiB, is an Invalid error with its number, and a loop that goes on
// gets the next one; any other error is the end.
func ReadEvents(r io.Reader, key string) iter.Seq2[Event, error] {
	return readLines(r, func(n int64, line []byte) (Event, error) {
		e, err := ParseEvent(line, time.Time{})
		if e.Key == "" {
			e.Key = key
		}
		e.line = n
		return e, err
	})
}

// ReadAccess returns the lines of an access log as events of the metric key: see
// [ParseAccess], and [ReadEvents] for all else.
func ReadAccess(r io.Reader, key string) iter.Seq2[Event, error] {
	return readLines(r, func(n int64, line []byte) (Event, error) {
		e, err := ParseAccess(string(line))
		e.Key, e.line = key, n
		return e, err
	})
}

// ParseEvent reads an event as a line of [ReadEvents] has it. Without a time it is of at,
// without a key it has none.
func ParseEvent(text []byte, at time.Time) (e Event, err error) {
	if err := pg.CheckJSON("event", text); err != nil {
		return e, err
	}
	var object struct {
		Key       string          `json:"key"`
		At        json.RawMessage `json:"at"`
		Values    json.RawMessage `json:"values"`
		ID        string          `json:"id"`
		Op        string          `json:"op"`
		Untracked bool            `json:"untracked"`
	}
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&object); err != nil {
		const want = "want an object with key, at, values, id, op and untracked"
		var other *json.UnmarshalTypeError
		switch {
		case errors.As(err, &other) && other.Field != "":
			return e, pg.Refuse(other.Field, "a %s; want a %s", other.Value, other.Type)
		case other != nil:
			return e, pg.Refuse("event", "a %s; %s", other.Value, want)
		}
		return e, pg.Refuse("event", "%s: %s", want, strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := strict.Token(); err != io.EOF {
		return e, pg.Refuse("event", "more than one object")
	}
	e = Event{Key: object.Key, ID: object.ID, At: at, Untracked: object.Untracked}
	switch object.Op {
	case "", "track":
		e.Op = OpAdd
	case "assert":
		e.Op = OpPut
	default:
		return e, pg.Refuse("op", "%q; want track or assert", shorten(object.Op))
	}
	if object.At != nil {
		if e.At, err = parseAt(string(object.At)); err != nil {
			return e, err
		}
	}
	if len(object.Values) > 0 {
		e.Values, err = ParseValues(object.Values)
	}
	return e, err
}

// parseAt reads a time of a line.
func parseAt(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, pg.Refuse("at", "missing")
	}
	if quoted, err := strconv.Unquote(text); err == nil {
		text = quoted
	}
	return ParseTime(text)
}

// ParseTime reads a time: RFC 3339 or Unix seconds, with or without a fraction, which is
// rounded down, as no bucket is shorter. Another text, and years but 1 to 9999, are Invalid.
func ParseTime(text string) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at, nil
	}
	if n, err := NumberOf(json.Number(text)); err == nil {
		exact, _ := new(big.Rat).SetString(n.String())
		seconds := new(big.Int).Div(exact.Num(), exact.Denom())
		if s := seconds.Int64(); seconds.IsInt64() && s >= firstSecond && s <= lastSecond {
			return time.Unix(s, 0), nil
		}
	}
	return time.Time{}, pg.Refuse("at", "%q; want RFC 3339, such as 2025-05-06T09:15:00Z, or Unix seconds, of the years 1 to 9999", shorten(text))
}

// maxLine bounds the memory of a line.
const maxLine = 1 << 20

// readLines returns what parse makes of each line that is not blank, or what is wrong
// with it. Of a source that breaks off the rest of a line never came.
func readLines[T any](r io.Reader, parse func(n int64, line []byte) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		lines, err := unpackLines(r)
		if err != nil {
			yield(none, err)
			return
		}
		for n := int64(1); ; n++ {
			line, err := lines.ReadSlice('\n')
			tooLong := false
			for errors.Is(err, bufio.ErrBufferFull) {
				tooLong = true
				_, err = lines.ReadSlice('\n')
			}
			ended := err != nil
			if ended && err != io.EOF {
				yield(none, fmt.Errorf("the source breaks off after line %d: %v", n-1, err)) // its cause is not ours: an EOF of the database is one, too
				return
			}
			if line = bytes.TrimSpace(line); tooLong || len(line) > 0 {
				var value T
				bad := errors.New("over 1 MiB")
				if !tooLong {
					value, bad = parse(n, line)
				}
				if bad != nil {
					value, bad = none, pg.Refuse("line "+strconv.FormatInt(n, 10), "%v", bad)
				}
				if !yield(value, bad) {
					return
				}
			}
			if ended {
				return
			}
		}
	}
}

// unpackLines reads what gzip has packed, and passes over the mark that some editors
// put before UTF-8.
func unpackLines(r io.Reader) (*bufio.Reader, error) {
	lines := bufio.NewReaderSize(r, maxLine)
	if magic, _ := lines.Peek(2); string(magic) == "\x1f\x8b" {
		unpacked, err := gzip.NewReader(lines)
		if err != nil {
			return nil, fmt.Errorf("gzip: %v", err)
		}
		lines = bufio.NewReaderSize(unpacked, maxLine)
	}
	const mark = "\ufeff"
	if head, _ := lines.Peek(len(mark)); string(head) == mark {
		lines.Discard(len(mark)) // just peeked
	}
	return lines, nil
}
