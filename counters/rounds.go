package counters

import (
	"maps"
	"slices"
)

// fold is what a transaction writes: each row once.
type fold struct {
	rows   map[rowID]*rowFold
	spread map[rowID]bool           // those that have slots for what is added to them
	stored map[rowID]map[string]any // what is known to be in rows, and is no number
	words  bool                     // some field is put that is no number
	undo   []change
	undoes bool // whether undo is kept
}

// rowFold is what a row is to get, in rounds. A field has one operation in each; what
// does not become one with what is to be done before it, goes into the next.
type rowFold struct {
	rounds []round
	first  [1]round // most have no other
}

// round is fields in the order in which they came.
type round struct {
	fields []field
	at     map[string]int // of fields by their paths, where they are many
	shared bool           // fields are those of an event, which other rows have too
}

// few is how many fields are looked through faster than looked up.
const few = 8

// find returns where the field of a path is, -1 of none; near is where it may be.
func (r *round) find(path string, near int) int {
	if near < len(r.fields) && r.fields[near].path == path {
		return near
	}
	if r.at != nil {
		if i, ok := r.at[path]; ok {
			return i
		}
		return -1
	}
	for i := range r.fields {
		if r.fields[i].path == path {
			return i
		}
	}
	return -1
}

func (r *round) add(f field) {
	r.own()
	r.fields = append(r.fields, f)
	switch n := len(r.fields); {
	case r.at != nil:
		r.at[f.path] = n - 1
	case n > few:
		r.index(2 * n)
	}
}

// index makes fields to be looked up, with room for so many.
func (r *round) index(room int) {
	r.at = make(map[string]int, room)
	for i, f := range r.fields {
		r.at[f.path] = i
	}
}

// own makes fields the round's own, before they are changed.
func (r *round) own() {
	if !r.shared {
		return
	}
	r.fields, r.shared = slices.Clone(r.fields), false
	if n := len(r.fields); n > few {
		r.index(n)
	}
}

// drop takes a field out, and puts the last in its place.
func (r *round) drop(i int) {
	r.own()
	last := len(r.fields) - 1
	delete(r.at, r.fields[i].path)
	if i != last {
		r.fields[i] = r.fields[last]
		if r.at != nil {
			r.at[r.fields[i].path] = i
		}
	}
	r.fields = r.fields[:last]
}

// change is what was done to a row: it was made, or a field was added to a round of it,
// or one was replaced.
type change struct {
	id    rowID
	made  bool
	round int
	at    int // of the field that was replaced, -1 of one that was added
	was   field
}

// take adds fields, each of another path, to what a row is to get. An addition to
// something that is no number, and that the same transaction puts there or found there,
// is refused.
func (f *fold) take(id rowID, fields []field) error {
	if f.rows == nil {
		f.rows = map[rowID]*rowFold{}
	}
	row := f.rows[id]
	if row == nil {
		row = new(rowFold)
		row.rounds = row.first[:]
		f.rows[id] = row
		if f.undoes {
			f.undo = append(f.undo, change{id: id, made: true})
		}
		if f.stored[id] == nil { // most rows are those of one event: then it keeps them
			row.rounds[0] = round{fields: fields, shared: true}
			f.words = f.words || slices.ContainsFunc(fields, field.isWord)
			return nil
		}
	}
	for near := range fields {
		if err := f.takeField(id, row, &fields[near], near); err != nil {
			return err
		}
	}
	return nil
}

func (f *fold) takeField(id rowID, row *rowFold, later *field, near int) error {
	last := len(row.rounds) - 1
	at := row.rounds[last].find(later.path, near)
	for ; at < 0 && last > 0; at = row.rounds[last].find(later.path, near) {
		last--
	}
	one := *later
	if at >= 0 {
		merged, ok, problem := merge(&row.rounds[last].fields[at], later)
		switch {
		case problem != "":
			return notNumber(later.path, "%s, which was put there just before, is no number", problem)
		case ok:
			one = merged
		default:
			last, at = last+1, -1
		}
	} else if later.op != OpPut && f.stored != nil {
		if leaf, ok := f.stored[id][later.path]; ok {
			text, _ := appendJSON(nil, leaf, 0)
			return notNumber(later.path, "%s holds %s, which is no number", id.key, shorten(string(text)))
		}
	}
	if last == len(row.rounds) {
		row.rounds = append(row.rounds, round{})
	}
	r := &row.rounds[last]
	if f.undoes {
		c := change{id: id, round: last, at: at}
		if at >= 0 {
			c.was = r.fields[at]
		}
		f.undo = append(f.undo, c)
	}
	if at >= 0 {
		r.own()
		r.fields[at] = one
	} else {
		r.add(one)
	}
	f.words = f.words || one.isWord()
	return nil
}

// isWord reports whether what is no number is put.
func (f field) isWord() bool { return f.op == OpPut && !f.number.known && f.other != nil }

// all takes what several events write, or nothing of it where some field of the i-th
// is refused.
func (f *fold) all(events []prepared) (i int, err error) {
	f.undo = f.undo[:0]
	f.undoes = f.words || f.stored != nil || len(events) > 1 // else nothing can be refused
	for i, e := range events {
		if err := e.into(f); err != nil {
			f.back()
			return i, err
		}
	}
	return 0, nil
}

// back makes the fold what it was before the last call of all.
func (f *fold) back() {
	for _, c := range slices.Backward(f.undo) {
		row := f.rows[c.id]
		switch {
		case c.made:
			delete(f.rows, c.id)
		case c.at >= 0:
			row.rounds[c.round].fields[c.at] = c.was
		default:
			r := &row.rounds[c.round]
			r.drop(len(r.fields) - 1)
			if c.round > 0 && len(row.rounds[c.round].fields) == 0 {
				row.rounds = row.rounds[:c.round]
			}
		}
	}
}

// merge returns what does the same as two fields one after the other, if one can, or
// what of the earlier is no number.
func merge(earlier, later *field) (one field, ok bool, problem string) {
	if later.op == OpPut {
		one = *later
		one.over = earlier.over || earlier.op != OpPut
		return one, true, ""
	}
	n, m := earlier.number, later.number
	if earlier.op == OpPut {
		if !n.known {
			stored, isNumber := storedNumber(earlier.other)
			if !isNumber && earlier.other != nil {
				return one, false, describe(earlier.other)
			}
			n = stored
		}
	} else if earlier.op != later.op {
		return one, false, ""
	}
	one = field{path: earlier.path, op: earlier.op, over: earlier.over}
	switch {
	case later.op == OpAdd:
		one.number = n.Add(m)
	case !n.known, (later.op == OpMax) == (m.Cmp(n) > 0):
		one.number = m
	default:
		one.number = n
	}
	return one, true, ""
}

// sorted are the rows in the order in which they are locked.
func (f *fold) sorted() []rowID { return inOrder(maps.Keys(f.rows)) }
