package counters

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// ImportReport is what became of the rows of an import.
type ImportReport struct {
	Rows    int64   `json:"rows"`    // written
	Refused int64   `json:"refused"` // cannot be rows of the table
	Errors  []error `json:"-"`       // the first 100 of why not
}

// maxErrors is how many errors a report has.
const maxErrors = 100

func (r *ImportReport) refuse(err error) {
	if r.Refused++; len(r.Errors) < maxErrors {
		r.Errors = append(r.Errors, err)
	}
}

// Import puts rows as they are, in the place of those that are there: those of an
// export, of a table of any mode. Of a row that comes twice the later holds. What cannot
// be a row of the table is left out and reported, and so is an error of rows that is
// Invalid; any other error ends it. It writes 1,000 rows at a time, on a pool each time
// in a transaction of its own: an import that was interrupted is simply run again. In one
// of the caller's each thousand locks its rows anew, so that PostgreSQL may end it with
// deadlock_detected (40P01): the caller repeats that transaction. System rows are rows like
// any other.
func (s *Store) Import(ctx context.Context, rows iter.Seq2[Row, error]) (report ImportReport, err error) {
	err = s.whole(ctx, func(s *Store) (err error) {
		report, err = s.importRows(ctx, rows)
		return err
	})
	return report, pg.Wrap("counters: import", err)
}

// arriving is a row on its way in.
type arriving struct {
	rowID
	data string
	nth  int64
}

func (s *Store) importRows(ctx context.Context, rows iter.Seq2[Row, error]) (report ImportReport, err error) {
	t, err := s.table(ctx)
	if err != nil {
		return report, err
	}
	var part []arriving
	nth, text := int64(0), 0
	for r, broken := range rows {
		if broken != nil && !errors.Is(broken, fault.Invalid) {
			return report, errors.Join(broken, s.importPart(ctx, t, part, &report))
		}
		if nth++; broken != nil {
			report.refuse(broken)
			continue
		}
		one, err := t.arriving(r)
		if err != nil {
			report.refuse(inRow(nth, err))
			continue
		}
		one.nth = nth
		part = append(part, one)
		if text += len(one.data); len(part) < maxPart && text < maxPartText {
			continue
		}
		if err := s.importPart(ctx, t, part, &report); err != nil {
			return report, err
		}
		part, text = part[:0], 0
	}
	return report, s.importPart(ctx, t, part, &report)
}

// maxPartText is at how many bytes rows are written.
const maxPartText = 4 << 20

// arriving returns a row as it is stored, or what is wrong with it.
func (t *table) arriving(r Row) (one arriving, err error) {
	if r.Granularity == "" {
		if !r.At.IsZero() {
			return one, pg.Refuse("granularity", "missing; without it a row has no at")
		}
		ids, err := t.identify([]Key{{r.Key}})
		if err != nil {
			var input *pg.InputError
			if errors.As(err, &input) {
				input.Field = "key"
			}
			return one, err
		}
		one.rowID = ids[0]
	} else {
		if err := checkKey(r.Key); err != nil {
			return one, err
		}
		if err := r.Granularity.check("granularity"); err != nil {
			return one, err
		}
		if err := checkTime("at", r.At); err != nil {
			return one, err
		}
		if r.At.Nanosecond() != 0 {
			return one, pg.Refuse("at", "%s; want whole seconds", r.At.Format(time.RFC3339Nano))
		}
		var problem string
		if one.rowID, problem = t.bucket(r.Key, r.Granularity, r.At.Unix()); problem != "" {
			return one, pg.Refuse("key", "%s", problem)
		}
	}
	fields, err := t.paths.repack(r.Values)
	one.data = string(appendFields(nil, fields, OpPut))
	return one, err
}

// importPart writes rows in a transaction. Those that only PostgreSQL refuses are found
// by halves.
func (s *Store) importPart(ctx context.Context, t *table, part []arriving, report *ImportReport) error {
	if len(part) == 0 {
		return nil
	}
	t, err := s.still(ctx, t)
	if err != nil {
		return err
	}
	sorted := slices.Clone(part)
	slices.SortStableFunc(sorted, func(a, b arriving) int { return a.compare(b.rowID) })
	var rows []rowID
	var data []string
	for _, one := range sorted {
		if n := len(rows); n > 0 && rows[n-1] == one.rowID {
			data[n-1] = one.data
			continue
		}
		rows, data = append(rows, one.rowID), append(data, one.data)
	}
	err = s.together(ctx, func(s *Store) error {
		if slotted := slices.DeleteFunc(slices.Clone(rows), func(id rowID) bool { return !t.slottedRow(id) }); len(slotted) > 0 {
			if _, err := s.lock(ctx, t, rows); err != nil { // before any slot
				return err
			}
			if _, err := s.discard(ctx, s.db, t, slotted...); err != nil {
				return err
			}
		}
		return s.replace(ctx, t, rows, data)
	})
	switch {
	case err == nil:
		report.Rows += int64(len(part))
		return nil
	case pg.KindOf(err) != fault.Invalid:
		return s.told(pg.Written(s.db, err))
	case len(part) == 1:
		report.refuse(inRow(part[0].nth, err))
		return nil
	}
	half := len(part) / 2
	if err := s.importPart(ctx, t, part[:half], report); err != nil {
		return err
	}
	return s.importPart(ctx, t, part[half:], report)
}

// inRow says in which row of an import something is wrong.
func inRow(nth int64, err error) error {
	var input *pg.InputError
	if errors.As(err, &input) {
		return pg.Refuse("rows["+strconv.FormatInt(nth-1, 10)+"]."+input.Field, "%s", input.Problem)
	}
	return pg.Refuse("rows["+strconv.FormatInt(nth-1, 10)+"]", "%v", err)
}

// maxRow bounds the memory of a line with a row.
const maxRow = 64 << 20

// ReadRows returns the rows of r, as [WriteRows] wrote them, read as they are asked for.
// at is RFC 3339 or Unix seconds. What gzip has packed is unpacked. Blank lines are passed
// over. A line that is wrong is an Invalid error with its number, and a loop that goes on
// gets the next one; any other error is the end.
func ReadRows(r io.Reader) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		plain, err := unpackLines(r)
		if err != nil {
			yield(Row{}, err)
			return
		}
		lines := bufio.NewScanner(plain)
		lines.Buffer(nil, maxRow)
		for n := 1; lines.Scan(); n++ {
			line := bytes.TrimSpace(lines.Bytes())
			if len(line) == 0 {
				continue
			}
			row, err := parseRow(line)
			if err != nil {
				row, err = Row{}, pg.Refuse("line "+strconv.Itoa(n), "%v", err)
			}
			if !yield(row, err) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(Row{}, err)
		}
	}
}

func parseRow(line []byte) (r Row, err error) {
	if err := pg.CheckJSON("row", line); err != nil {
		return r, err
	}
	var object struct {
		Key         *string
		Granularity Granularity
		At          json.RawMessage
		Values      *Values
	}
	strict := json.NewDecoder(bytes.NewReader(line))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&object); err != nil {
		return r, pg.Refuse("row", `%s; want {"key":…,"granularity":…,"at":…,"values":{…}}`, strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := strict.Token(); err != io.EOF {
		return r, pg.Refuse("row", "more than one object")
	}
	if object.Key == nil || object.Values == nil {
		return r, pg.Refuse("row", "without key or values")
	}
	r = Row{Key: *object.Key, Granularity: object.Granularity, Values: *object.Values}
	if len(object.At) == 0 {
		return r, nil
	}
	r.At, err = parseAt(string(object.At))
	return r, err
}
