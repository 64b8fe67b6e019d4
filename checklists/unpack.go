package checklists

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"unicode/utf8"

	"github.com/howdah-db/howdah/pg"
)

const byteOrderMark = "\ufeff"

// unpack reads what gzip packed, passes over the mark that some editors put before
// UTF-8, and refuses what begins as no text does.
func unpack(r io.Reader, format Format) (plain io.Reader, packed bool, err error) {
	b := bufio.NewReader(r)
	if magic, _ := b.Peek(2); string(magic) == "\x1f\x8b" {
		unpacked, err := gzip.NewReader(b)
		if err != nil {
			return nil, true, pg.Refuse("gzip", "%v", err)
		}
		b, packed = bufio.NewReader(unpacked), true
	}
	if mark, _ := b.Peek(len(byteOrderMark)); string(mark) == byteOrderMark && format != NUL {
		b.Discard(len(byteOrderMark)) // just peeked
	}
	head, _ := b.Peek(min(b.Buffered(), 512)) // what has come; a slow source is not waited for
	if what := binary(head, format); what != "" {
		return nil, packed, pg.Refuse("source", "%s", what)
	}
	return b, packed, nil
}

// magics are how files begin that are often given in the place of text.
var magics = []struct{ magic, what string }{
	{"\xff\xfe", "UTF-16; want UTF-8"},
	{"\xfe\xff", "UTF-16; want UTF-8"},
	{"PK\x03\x04", "packed with zip; want it unpacked"},
	{"BZh", "packed with bzip2; want it unpacked, or with gzip"},
	{"\xfd7zXZ\x00", "packed with xz; want it unpacked, or with gzip"},
	{"\x28\xb5\x2f\xfd", "packed with zstd; want it unpacked, or with gzip"},
}

// binary says what a source is that begins with head and is no text, "" where it
// may be.
func binary(head []byte, format Format) string {
	for cut := range min(utf8.UTFMax, len(head)+1) { // the last letter may be cut in two
		if utf8.Valid(head[:len(head)-cut]) {
			return ""
		}
	}
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.what
		}
	}
	if format != NUL && bytes.IndexByte(head, 0) >= 0 {
		return "binary data; want text in UTF-8"
	}
	return ""
}
