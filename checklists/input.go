package checklists

import (
	"fmt"
	"slices"

	"github.com/howdah-db/howdah/pg"
)

// MaxName is how many bytes the names of a list and an item may have together.
// An index row holds 2,704; this always fits.
const MaxName = 2600

// check refuses names that no statement can carry.
func (s *Store) check(list string, items []string) error {
	if err := s.names.Err(); err != nil {
		return err
	}
	if err := pg.CheckText("list", list); err != nil {
		return err
	}
	return checkItems(items, pg.CheckText)
}

// checkNew also refuses names too long to be stored. What is longer and there,
// because the original let it in, can still be read, ticked and deleted.
func (s *Store) checkNew(list string, items []string) error {
	if err := s.check(list, nil); err != nil {
		return err
	}
	return checkItems(items, func(field, item string) error { return checkName(field, list, item) })
}

// checkItems checks each of items. Which one it is is put into words only where it
// is refused: that takes longer than to check it.
func checkItems(items []string, check func(field, item string) error) error {
	for i, item := range items {
		if check("item", item) == nil {
			continue
		}
		if len(items) == 1 {
			return check("item", item)
		}
		return check(fmt.Sprintf("items[%d]", i), item)
	}
	return nil
}

// checkName refuses an item that cannot be stored on list.
func checkName(field, list, item string) error {
	if err := pg.CheckText(field, item); err != nil {
		return err
	}
	if n := len(list) + len(item); n > MaxName {
		return pg.Refuse(field, "%s bytes; list and item together may have %s", thousands(n), thousands(MaxName))
	}
	return nil
}

func checkPage(after *string, n int) error {
	if n < 1 || n > MaxPage {
		return pg.Refuse("limit", "%d; want 1 to %s", n, thousands(MaxPage))
	}
	if after != nil {
		return pg.CheckText("after", *after)
	}
	return nil
}

// sortedSet returns items once each in the order of their bytes, which is the
// order of COLLATE "C": every statement locks in it.
func sortedSet(items []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(items)))
}

// thousands writes 2600 as 2,600.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
