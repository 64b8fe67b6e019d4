package checklists

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// csvHeader are the columns that are written; what is read back of an item.
const csvHeader = "item,priority,due,payload"

// readCSV calls tell for each row, with the line it begins on, and returns the
// last line.
func readCSV(r io.Reader, tell each) (n int, err error) {
	in := &rowByRow{r: r}
	rows := csv.NewReader(in)
	rows.ReuseRecord = true
	header, err := rows.Read()
	if err == io.EOF {
		return 0, pg.Refuse("line 1", "nothing is there; want a header with the column item")
	}
	if err != nil {
		return 0, rowError(rows, err, 1)
	}
	columns := slices.Clone(header)
	if err := checkHeader(columns); err != nil {
		return 0, pg.Refuse("line 1", "%v", err)
	}
	for n, _ = rows.FieldPos(0); ; {
		in.read = 0
		row, err := rows.Read()
		if err == io.EOF {
			return n, nil
		}
		var bad *csv.ParseError
		switch {
		case errors.As(err, &bad) && errors.Is(err, csv.ErrFieldCount):
			n = bad.StartLine
			err = fmt.Errorf("fields: %d; the header has %d", len(row), len(columns))
		case errors.As(err, &bad):
			n = bad.StartLine
			err = fmt.Errorf("column %d: %w", bad.Column, bad.Err)
		case err != nil:
			return n, rowError(rows, err, n+1)
		default:
			n, _ = rows.FieldPos(0)
		}
		var item Item
		if err == nil {
			item, err = parseRow(columns, row)
		}
		if !tell(n, item, err) {
			return n, nil
		}
	}
}

// rowError is what ended a row that began on line n.
func rowError(rows *csv.Reader, err error, n int) error {
	var bad *csv.ParseError
	switch {
	case errors.Is(err, errLongRow):
		return pg.Refuse("line "+thousands(n), "%v", err)
	case errors.As(err, &bad):
		return pg.Refuse("line "+thousands(bad.StartLine), "column %d: %v", bad.Column, bad.Err)
	}
	return err
}

var errLongRow = errors.New("the row that begins here is over " + thousands(maxLine+MaxPayload) + " bytes; is a quote not closed?")

// rowByRow bounds the memory of a row. What has been read ahead counts for the
// row before it; that is not much.
type rowByRow struct {
	r    io.Reader
	read int
}

// Read implements io.Reader.
func (r *rowByRow) Read(p []byte) (n int, err error) {
	if r.read > maxLine+MaxPayload {
		return 0, errLongRow
	}
	n, err = r.r.Read(p)
	r.read += n
	return n, err
}

func checkHeader(columns []string) error {
	others := 0
	for i, name := range columns {
		switch {
		case name == "":
			return fmt.Errorf("column %d of the header has no name", i+1)
		case pg.CheckText("column", name) != nil:
			return pg.CheckText("column "+strconv.Itoa(i+1), name)
		case slices.Index(columns, name) < i:
			return fmt.Errorf("the header names the column %q twice", name)
		case name != "item" && name != "priority" && name != "due" && name != "payload":
			others++
		}
	}
	if !slices.Contains(columns, "item") {
		return fmt.Errorf("the header has no column item: %.200s", strings.Join(columns, ", "))
	}
	if others > 0 && slices.Contains(columns, "payload") {
		return errors.New("the header has the column payload and others that would be the payload; want either")
	}
	return nil
}

// parseRow makes an item of a row: what is no column of an item's is its payload.
func parseRow(columns, row []string) (item Item, err error) {
	var others map[string]string
	for i, cell := range row {
		switch name := columns[i]; {
		case name == "item":
			item.Name = strings.Clone(cell) // without the rest of the row
		case name == "priority" && cell != "":
			if item.Priority, err = strconv.Atoi(cell); err != nil {
				return Item{}, fmt.Errorf("priority: %q; want a whole number from -5 to 5", cell)
			}
		case name == "due" && cell != "":
			if item.Due, err = parseDue(cell); err != nil {
				return Item{}, err
			}
		case name == "payload" && cell != "" && cell != "null":
			item.Payload = json.RawMessage(cell)
		case name == "priority", name == "due", name == "payload":
		default:
			if err := pg.CheckText(name, cell); err != nil {
				return Item{}, err
			}
			if others == nil {
				others = make(map[string]string, len(columns))
			}
			others[name] = cell
		}
	}
	if others != nil {
		item.Payload, err = json.Marshal(others)
	}
	return item, err
}

func csvWriter(out *bufio.Writer) func(Item) error {
	rows := csv.NewWriter(out) // which buffers already: nothing is held back
	return func(item Item) error {
		if strings.Contains(item.Name, "\r\n") {
			return pg.Refuse("item", "%q: readers of CSV take the carriage return before a line feed away; use the format nul or jsonl", item.Name)
		}
		row := [4]string{0: item.Name}
		if item.Priority != 0 {
			row[1] = strconv.Itoa(item.Priority)
		}
		if !item.Due.IsZero() && item.State != StateLeased { // the end of a lease is no business of a copy
			row[2] = item.Due.Format(time.RFC3339Nano)
		}
		if item.Payload != nil {
			var line bytes.Buffer
			if err := json.Compact(&line, item.Payload); err != nil {
				return pg.Refuse("payload", "%v", err)
			}
			row[3] = line.String()
		}
		return rows.Write(row[:])
	}
}
