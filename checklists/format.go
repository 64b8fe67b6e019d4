package checklists

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/howdah-db/howdah/pg"
)

// Format is how items are written one after the other.
type Format string

// The formats that [ReadItems] and [WriteItem] know.
const (
	Text  Format = "text"  // an item a line; blank lines are nothing, a carriage return at the end of a line goes
	NUL   Format = "nul"   // an item up to each NUL byte, as find -print0 and xargs -0 have it
	JSONL Format = "jsonl" // an object a line: {"item":"a.txt","attempts":1}
)

// Formats are the names of all formats.
var Formats = []string{string(Text), string(NUL), string(JSONL)}

// maxLine bounds the memory of a line; items are far shorter.
const maxLine = 1 << 20

// ReadItems returns the items of r, read as they are asked for. An error, Invalid
// where the input is wrong, names the line and ends it.
func ReadItems(r io.Reader, format Format) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		parse, split, unit := parseLine, bufio.ScanLines, "line"
		switch format {
		case Text:
		case NUL:
			parse, split, unit = parseExact, scanNUL, "item"
		case JSONL:
			parse = parseObject
		default:
			yield(Item{}, pg.Refuse("format", "%q; want one of %s", format, strings.Join(Formats, ", ")))
			return
		}
		plain, packed, err := unpack(r)
		if err != nil {
			yield(Item{}, pg.Refuse("gzip", "%v", err))
			return
		}
		src := &source{r: plain}
		lines := bufio.NewScanner(src)
		lines.Buffer(make([]byte, 64<<10), maxLine)
		lines.Split(src.whole(split))
		n := 0
		for lines.Scan() {
			n++
			item, ok, err := parse(lines.Bytes())
			if err != nil {
				yield(Item{}, pg.Refuse(unit+" "+thousands(n), "%s", err))
				return
			}
			if err := checkNth(unit, n, "", item.Name); err != nil {
				yield(Item{}, err)
				return
			}
			if ok && !yield(item, nil) {
				return
			}
		}
		if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
			yield(Item{}, pg.Refuse(unit+" "+thousands(n+1), "over %s bytes", thousands(maxLine)))
		} else if err != nil && packed {
			yield(Item{}, pg.Refuse("gzip", "%v after %s %s", err, unit, thousands(n)))
		} else if err != nil {
			yield(Item{}, fmt.Errorf("after %s %s: %w", unit, thousands(n), err))
		}
	}
}

// source remembers why reading ended.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (n int, err error) {
	n, err = s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// whole is split without what it takes for the last line where reading failed:
// the rest of that line never came.
func (s *source) whole(split bufio.SplitFunc) bufio.SplitFunc {
	return func(data []byte, atEOF bool) (int, []byte, error) {
		return split(data, atEOF && s.err == nil)
	}
}

// unpack reads what gzip packed, and passes over the mark that some editors put
// before UTF-8.
func unpack(r io.Reader) (plain io.Reader, packed bool, err error) {
	b := bufio.NewReader(r)
	if magic, _ := b.Peek(2); string(magic) == "\x1f\x8b" {
		unpacked, err := gzip.NewReader(b)
		if err != nil {
			return nil, true, err
		}
		b, packed = bufio.NewReader(unpacked), true
	}
	if mark, _ := b.Peek(3); string(mark) == "\ufeff" {
		b.Discard(3) // just peeked
	}
	return b, packed, nil
}

func parseLine(line []byte) (Item, bool, error) {
	name := string(line) // ScanLines took the carriage return
	return Item{Name: name}, strings.TrimSpace(name) != "", nil
}

func parseExact(b []byte) (Item, bool, error) { return Item{Name: string(b)}, true, nil }

func parseObject(line []byte) (Item, bool, error) {
	if len(bytes.TrimSpace(line)) == 0 {
		return Item{}, false, nil
	}
	if err := pg.CheckJSON("item", line); err != nil {
		return Item{}, false, err
	}
	var object struct {
		Item *string `json:"item"`
	}
	var syntax *json.SyntaxError
	if err := json.Unmarshal(line, &object); errors.As(err, &syntax) {
		return Item{}, false, fmt.Errorf(`no JSON (%w); want an object such as {"item":"a.txt"}`, err)
	} else if err != nil {
		return Item{}, false, errors.New(`want an object such as {"item":"a.txt"}`)
	}
	if object.Item == nil {
		return Item{}, false, errors.New(`the object has no "item"`)
	}
	return Item{Name: *object.Item}, true, nil
}

func scanNUL(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// WriteItem appends item to w so that [ReadItems] reads it back. Text and NUL
// hold names only; an item that has no line of its own in Text (a line break in
// its name, or nothing but white space) is refused as Invalid.
func WriteItem(w io.Writer, format Format, item Item) error {
	switch format {
	case Text:
		if strings.ContainsAny(item.Name, "\r\n") || strings.TrimSpace(item.Name) == "" {
			return pg.Refuse("item", "%q does not fit into a line of text; use the format nul or jsonl", item.Name)
		}
		_, err := io.WriteString(w, item.Name+"\n")
		return err
	case NUL:
		_, err := io.WriteString(w, item.Name+"\x00")
		return err
	case JSONL:
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return e.Encode(item)
	}
	return pg.Refuse("format", "%q; want one of %s", format, strings.Join(Formats, ", "))
}
