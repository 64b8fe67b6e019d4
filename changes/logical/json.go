package logical

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/howdah-db/howdah/pg"
)

// jsonType says how to_jsonb writes the values of a type. Those it has no rule of its
// own for are strings; so are here composites, which it makes objects of.
type jsonType struct {
	base  uint32    // the type beneath domains
	elem  *jsonType // of an array
	delim byte
}

// learn looks up the types that are not known yet.
func (s *source) learn(ctx context.Context, oids []uint32) error {
	var fresh []uint32
	for _, oid := range oids {
		if s.types[oid] == nil {
			s.types[oid] = &jsonType{base: oid} // what is dropped since stays that
			fresh = append(fresh, oid)
		}
	}
	if fresh == nil {
		return nil
	}
	rows, _ := s.conn.Query(ctx, `
		WITH RECURSIVE t AS (
			SELECT oid AS asked, oid, typtype, typbasetype, typelem, typcategory
			FROM pg_type
			WHERE oid = ANY($1)
			UNION ALL
			SELECT t.asked, b.oid, b.typtype, b.typbasetype, b.typelem, b.typcategory
			FROM t
			JOIN pg_type b ON b.oid = t.typbasetype
			WHERE t.typtype = 'd')
		SELECT t.asked, t.oid, coalesce(e.oid, 0), coalesce(e.typdelim::text, ',')
		FROM t
		LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
		WHERE t.typtype <> 'd'`, fresh)
	elems := map[uint32]uint32{}
	var asked, base, elem uint32
	var delim string
	if _, err := pgx.ForEachRow(rows, []any{&asked, &base, &elem, &delim}, func() error {
		t := s.types[asked]
		t.base, t.delim = base, delim[0]
		if elem != 0 {
			elems[asked] = elem
		}
		return nil
	}); err != nil {
		return err
	}
	for of, elem := range elems {
		if err := s.learn(ctx, []uint32{elem}); err != nil {
			return err
		}
		s.types[of].elem = s.types[elem]
	}
	return nil
}

// append appends a value, which is as the type's output function wrote it.
func (t *jsonType) append(b []byte, text string) []byte {
	if t.elem != nil {
		if array, rest, ok := t.array(b, text[strings.IndexByte(text, '{')+1:]); ok && rest == "" { // before it stand bounds, perhaps
			return array
		}
		return quoted(b, text)
	}
	switch t.base {
	case pgtype.BoolOID:
		if text == "t" {
			return append(b, "true"...)
		}
		return append(b, "false"...)
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.Float4OID, pgtype.Float8OID, pgtype.NumericOID:
		if json.Valid([]byte(text)) { // not NaN
			return append(b, text...)
		}
	case pgtype.JSONOID, pgtype.JSONBOID:
		if t.base == pgtype.JSONBOID || storable(text) {
			return append(b, text...)
		}
	case pgtype.TimestampOID:
		text = strings.Replace(text, " ", "T", 1)
	case pgtype.TimestamptzOID:
		text = strings.Replace(strings.Replace(text, " ", "T", 1), "+00", "+00:00", 1) // the connection's zone is UTC
	}
	return quoted(b, text)
}

// array appends the array whose elements text begins with, after its brace, and returns
// what follows the other brace.
func (t *jsonType) array(b []byte, text string) (_ []byte, rest string, ok bool) {
	b = append(b, '[')
	for first := true; ; first = false {
		switch {
		case text == "":
			return b, "", false
		case text[0] == '}' && first:
			return append(b, ']'), text[1:], true
		case !first:
			end := text[0] == '}'
			if !end && text[0] != t.delim {
				return b, "", false
			}
			if text = text[1:]; end {
				return append(b, ']'), text, true
			}
			b = append(b, ',')
		}
		switch {
		case strings.HasPrefix(text, "{"):
			if b, text, ok = t.array(b, text[1:]); !ok {
				return b, "", false
			}
		case strings.HasPrefix(text, `"`):
			var value strings.Builder
			i := 1
			for ; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
				if i < len(text) {
					value.WriteByte(text[i])
				}
			}
			if i >= len(text) {
				return b, "", false
			}
			b, text = t.elem.append(b, value.String()), text[i+1:]
		default:
			i := strings.IndexAny(text, string([]byte{t.delim, '}'}))
			if i < 0 {
				return b, "", false
			}
			if text[:i] == "NULL" {
				b = append(b, "null"...)
			} else {
				b = t.elem.append(b, text[:i])
			}
			text = text[i:]
		}
	}
}

// storable reports whether the log's jsonb can hold JSON; json can hold more: NUL, halves
// of surrogate pairs, and numbers beyond what numeric has.
func storable(text string) bool {
	if !json.Valid([]byte(text)) || strings.Contains(text, `\u0000`) || pg.CheckJSON("", []byte(text)) != nil {
		return false
	}
	for d := numbers(text); ; {
		token, err := d.Token()
		if err != nil { // the end
			return true
		}
		if n, ok := token.(json.Number); ok {
			_, power, _ := strings.Cut(strings.ToLower(n.String()), "e")
			exponent, err := strconv.Atoi(cmp.Or(power, "0"))
			if err != nil || len(n) > 10_000 || exponent > 100_000 || exponent < -6_000 {
				return false
			}
		}
	}
}

func numbers(text string) *json.Decoder {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	return d
}

// quoted appends text as a JSON string.
func quoted(b []byte, text string) []byte {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if e.Encode(text) != nil {
		return append(b, `""`...) // a string always can be
	}
	return append(b, bytes.TrimSuffix(out.Bytes(), []byte("\n"))...)
}
