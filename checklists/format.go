package checklists

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/howdah-db/howdah/pg"
)

// Format is how items are written one after the other.
type Format string

// The formats that [ReadItems] and [WriteItems] know. Text and NUL hold names only.
const (
	Text  Format = "text"  // an item a line; blank lines are nothing, a carriage return at the end of a line goes
	NUL   Format = "nul"   // an item up to each NUL byte, as find -print0 and xargs -0 have it
	CSV   Format = "csv"   // a row an item: see ReadItems
	JSONL Format = "jsonl" // an object a line: {"item":"a.txt","priority":2,"due":"2026-11-20T14:05:00Z","payload":{}}
)

// Formats are the names of all formats.
var Formats = []string{string(Text), string(NUL), string(CSV), string(JSONL)}

// maxLine bounds the memory of a line; names are far shorter.
const maxLine = 1 << 20

func checkFormat(format Format) error {
	for _, known := range Formats {
		if string(format) == known {
			return nil
		}
	}
	return pg.Refuse("format", "%q; want one of %s", format, strings.Join(Formats, ", "))
}

// each is called for the n-th line, from 1, of a format, with its item or with what
// is wrong with it, and returns whether there should be more.
type each func(n int, item Item, bad error) bool

// ReadItems returns the items of r, read as they are asked for, with their names,
// payloads, priorities and Due; what became of them elsewhere is passed over. What
// gzip has packed is unpacked. An error, Invalid where the input is wrong, names
// the line. A loop that goes on after a line that is wrong gets the next one; any
// other error is the end.
//
// The header of CSV names the columns: item, and as one likes priority, due (a time
// as in JSON) and payload (JSON). Without the last, all other columns together
// are the payload: an object of texts.
func ReadItems(r io.Reader, format Format) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if err := checkFormat(format); err != nil {
			yield(Item{}, err)
			return
		}
		plain, packed, err := unpack(r, format)
		if err != nil {
			yield(Item{}, err)
			return
		}
		unit := "line"
		if format == NUL {
			unit = "item"
		}
		ended := false
		tell := func(n int, item Item, bad error) bool {
			if bad == nil && checkItem("item", "", &item) == nil {
				ended = !yield(item, nil)
			} else if bad == nil {
				ended = !yield(Item{}, badItem{checkItem(unit+" "+thousands(n), "", &item)})
			} else {
				ended = !yield(Item{}, badItem{pg.Refuse(unit+" "+thousands(n), "%s", bad)})
			}
			return !ended
		}
		var n int
		switch format {
		case Text:
			n, err = readLines(plain, '\n', maxLine, tell, parseLine)
		case NUL:
			n, err = readLines(plain, 0, maxLine, tell, parseExact)
		case JSONL:
			n, err = readLines(plain, '\n', maxLine+MaxPayload, tell, parseObject)
		case CSV:
			n, err = readCSV(plain, tell)
		}
		_, refused := err.(*pg.InputError) // by us, not by the source
		switch {
		case ended || err == nil:
		case refused:
			yield(Item{}, err)
		case packed:
			yield(Item{}, pg.Refuse("gzip", "%v after %s %s", err, unit, thousands(n)))
		default:
			yield(Item{}, fmt.Errorf("after %s %s: %w", unit, thousands(n), err))
		}
	}
}

// readLines parses what ends with a byte, and what follows the last one. It returns
// how many there were. Of a source that breaks off the rest of a line never came.
func readLines(r io.Reader, end byte, longest int, tell each, parse func([]byte) (Item, bool, error)) (n int, err error) {
	lines := bufio.NewReaderSize(r, longest+1)
	for {
		line, err := lines.ReadSlice(end)
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull || err == io.EOF && len(line) == 0 {
			return n, unlessEnd(err)
		}
		n++
		if err == bufio.ErrBufferFull || err == io.EOF && len(line) > longest {
			if !tell(n, Item{}, errors.New("over "+thousands(longest)+" bytes")) {
				return n, nil
			}
			for err == bufio.ErrBufferFull {
				_, err = lines.ReadSlice(end)
			}
			if err != nil {
				return n, unlessEnd(err)
			}
			continue
		}
		if err == nil {
			line = line[:len(line)-1]
		}
		if item, ok, bad := parse(line); (ok || bad != nil) && !tell(n, item, bad) {
			return n, nil
		}
	}
}

func unlessEnd(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

func parseLine(line []byte) (Item, bool, error) {
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(bytes.TrimSpace(line)) == 0 {
		return Item{}, false, nil
	}
	return Item{Name: string(line)}, true, nil
}

func parseExact(b []byte) (Item, bool, error) { return Item{Name: string(b)}, true, nil }

func parseObject(line []byte) (item Item, ok bool, err error) {
	if len(bytes.TrimSpace(line)) == 0 {
		return Item{}, false, nil
	}
	if err := pg.CheckJSON("item", line); err != nil {
		return Item{}, false, err
	}
	var object struct {
		Item     *string         `json:"item"`
		Payload  json.RawMessage `json:"payload"`
		Priority int             `json:"priority"`
		Due      *string         `json:"due"`
		State    string          `json:"state"`

		// Of an export, and passed over.
		Attempts, Tried, Worker, Error json.RawMessage
	}
	err = json.Unmarshal(line, &object)
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return Item{}, false, fmt.Errorf(`no JSON (%w); want an object such as {"item":"a.txt"}`, err)
	case errors.As(err, &wrong) && wrong.Field != "":
		return Item{}, false, fmt.Errorf("%s: a %s; want a %s", wrong.Field, wrong.Value, jsonKinds[wrong.Field])
	case errors.As(err, &wrong):
		return Item{}, false, errors.New(`want an object such as {"item":"a.txt"}`)
	case object.Item == nil:
		return Item{}, false, errors.New(`the object has no "item"`)
	}
	if name := strangeMember(line); name != "" {
		return Item{}, false, fmt.Errorf("unknown member %s; want item, payload, priority, due", name)
	}
	item = Item{Name: *object.Item, Payload: object.Payload, Priority: object.Priority}
	if string(item.Payload) == "null" {
		item.Payload = nil
	}
	if object.Due != nil && State(object.State) != StateLeased {
		if item.Due, err = parseDue(*object.Due); err != nil {
			return Item{}, false, err
		}
	}
	return item, true, nil
}

// strangeMember returns the name, as it is written, of a member that no item's object
// has, "" where there is none. (A json.Decoder could tell, and allocates more than twice as much.)
func strangeMember(object []byte) string {
	depth := 0
	for i := 0; i < len(object); i++ {
		switch object[i] {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case '"':
			from := i
			for i++; object[i] != '"'; i++ {
				if object[i] == '\\' {
					i++
				}
			}
			name := string(object[from : i+1])
			if depth == 1 && bytes.HasPrefix(bytes.TrimLeft(object[i+1:], " \t\r"), []byte(":")) &&
				!slices.ContainsFunc(jsonMembers, func(known string) bool { return strings.EqualFold(known, name) }) {
				return name
			}
		}
	}
	return ""
}

// jsonMembers are those of the objects that WriteItems writes.
var jsonMembers = []string{`"item"`, `"payload"`, `"priority"`, `"due"`, `"state"`, `"attempts"`, `"tried"`, `"worker"`, `"error"`}

// jsonKinds are what members of an item's object have to be.
var jsonKinds = map[string]string{
	"item": "text", "priority": "whole number from -5 to 5", "due": "time such as \"2026-11-20T14:05:00Z\"", "state": "text",
}

// WriteItems writes items to w as they come, so that [ReadItems] reads them back.
// It ends at the first error; what came before it is written. An item that the
// format cannot hold is refused as Invalid: a line break, or nothing but white
// space, has no line of Text, and a carriage return before a line feed no cell of
// CSV.
func WriteItems(w io.Writer, format Format, items iter.Seq2[Item, error]) (err error) {
	if err := checkFormat(format); err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 64<<10)
	defer func() {
		if flushed := out.Flush(); err == nil {
			err = flushed
		}
	}()
	write := map[Format]func(Item) error{Text: textWriter(out), NUL: nulWriter(out), CSV: csvWriter(out), JSONL: jsonWriter(out)}[format]
	if format == CSV {
		if _, err := out.WriteString(csvHeader + "\n"); err != nil {
			return err
		}
	}
	for item, err := range items {
		if err != nil {
			return err
		}
		if err := write(item); err != nil {
			return err
		}
	}
	return nil
}

func textWriter(out *bufio.Writer) func(Item) error {
	first := true
	return func(item Item) error {
		if strings.ContainsAny(item.Name, "\r\n") || strings.TrimSpace(item.Name) == "" {
			return pg.Refuse("item", "%q does not fit into a line of text; use the format nul or jsonl", item.Name)
		}
		if first && strings.HasPrefix(item.Name, byteOrderMark) {
			out.WriteString(byteOrderMark) // of two, a reader takes one away
		}
		first = false
		out.WriteString(item.Name)
		return out.WriteByte('\n') // a buffer keeps its first error
	}
}

func nulWriter(out *bufio.Writer) func(Item) error {
	return func(item Item) error {
		out.WriteString(item.Name)
		return out.WriteByte(0)
	}
}

func jsonWriter(out *bufio.Writer) func(Item) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	return func(item Item) error { return e.Encode(item) }
}
