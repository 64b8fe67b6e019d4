package main

import (
	"context"
	"slices"
)

var checklistsRows = []Row{
	Ratio{
		Work: "import a million, shuffled", Control: "COPY in batches of 10,000", Bar: 0.65,
		Open: func(ctx context.Context, lab *Lab) (Side, Side, error) {
			names := shuffled(lab.N(1_000_000, 100_000))
			ours, theirs, err := openLists(ctx, lab)
			return Side{theirs.truncate, func(ctx context.Context) (int, error) { return theirs.copyIn(ctx, names, 10_000) }},
				Side{ours.truncate, func(ctx context.Context) (int, error) { return ours.importAll(ctx, names) }},
				err
		},
	},
	Ratio{
		Work: "import the same again", Control: "COPY in batches of 10,000, once", Bar: 1,
		Open: func(ctx context.Context, lab *Lab) (Side, Side, error) {
			names := shuffled(lab.N(1_000_000, 100_000))
			ours, theirs, err := openLists(ctx, lab)
			if err == nil {
				_, err = ours.importAll(ctx, names)
			}
			return Side{theirs.truncate, func(ctx context.Context) (int, error) { return theirs.copyIn(ctx, names, 10_000) }},
				Side{nil, func(ctx context.Context) (int, error) { return ours.importAll(ctx, names) }},
				err
		},
	},
	Ratio{
		Work: "insert 1,000 a call, sorted, empty list", Control: "COPY in batches of 1,000", Bar: 0.5,
		Open: func(ctx context.Context, lab *Lab) (Side, Side, error) {
			names := slices.Sorted(slices.Values(shuffled(lab.N(300_000, 50_000))))
			ours, theirs, err := openLists(ctx, lab)
			return Side{theirs.truncate, func(ctx context.Context) (int, error) { return theirs.copyIn(ctx, names, 1000) }},
				Side{ours.truncate, inBatches(names, ours.Insert)},
				err
		},
	},
	Ratio{
		Work: "page 1,000 a call to the end", Control: "the original's statement", Bar: 0.6,
		Open: func(ctx context.Context, lab *Lab) (Side, Side, error) {
			ours, theirs, err := openFilled(ctx, lab, lab.N(1_000_000, 200_000))
			return Side{nil, theirs.pageAll}, Side{nil, ours.pageAll}, err
		},
	},
	Ratio{
		Work: "increment 1,000 a call, a random fifth, thrice", Control: "the original's: item IN (SELECT unnest)", Bar: 0.7,
		Open: func(ctx context.Context, lab *Lab) (Side, Side, error) {
			n := lab.N(500_000, 50_000)
			fifth := shuffled(n)[:n/5]
			ours, theirs, err := openLists(ctx, lab)
			return Side{theirs.refill(n), thrice(inBatches(fifth, theirs.increment))},
				Side{ours.refill(n), thrice(inBatches(fifth, ours.Increment))},
				err
		},
	},
	Ratio{
		Work: "delete 1,000 a call, shuffled", Control: "one DELETE, item IN (SELECT unnest)", Bar: 0.5,
		Open: func(ctx context.Context, lab *Lab) (Side, Side, error) {
			n := lab.N(300_000, 50_000)
			names := shuffled(n)
			ours, theirs, err := openLists(ctx, lab)
			return Side{theirs.refill(n), inBatches(names, theirs.delete)},
				Side{ours.refill(n), inBatches(names, ours.Delete)},
				err
		},
	},
	Count{
		Work: "growth of the index while a fifth is incremented, thrice", Control: "the original's: item IN (SELECT unnest)", Unit: "%", Bar: 5,
		Open: func(ctx context.Context, lab *Lab) (control, ours func(context.Context) (float64, error), err error) {
			n := lab.N(200_000, 50_000)
			own, theirs, err := openLists(ctx, lab)
			names := shuffled(n)
			return theirs.indexGrowth(
					func(ctx context.Context) (int, error) { return theirs.copyIn(ctx, names, 10_000) },
					thrice(inBatches(names[:n/5], theirs.increment))),
				own.indexGrowth(
					func(ctx context.Context) (int, error) { return own.importAll(ctx, names) },
					thrice(inBatches(names[:n/5], own.Increment))),
				err
		},
	},
	Count{
		Work: "deadlocks of overlapping increments", Control: "the original's: item IN (SELECT unnest)", Bar: 0,
		Open: func(ctx context.Context, lab *Lab) (control, ours func(context.Context) (float64, error), err error) {
			own, theirs, err := openLists(ctx, lab)
			if err == nil {
				err = lab.hurryDeadlocks(ctx)
			}
			return theirs.deadlocks(lab, theirs.increment), own.deadlocks(lab, own.Increment), err
		},
	},
	Growth{
		Work: "cost by size of the list", Bar: 2, Times: 20,
		Sizes: func(lab *Lab) []int {
			if lab.Quick {
				return []int{10_000, 100_000}
			}
			return []int{10_000, 100_000, 1_000_000}
		},
		Open: openGrowth,
	},
	Memory{},
}
