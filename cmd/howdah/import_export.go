package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/howdah-db/howdah"
	"github.com/howdah-db/howdah/checklists"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

func (c *cli) checklistsImport() *cobra.Command {
	var format string
	var null, skipBad bool
	var opt checklists.ImportOptions
	cmd := &cobra.Command{
		Use:   "import LIST FILE",
		Short: "Put the items of a file on a list; - is stdin",
		Long: `Puts the items of a file on a list and skips those already there. An import that
was interrupted is simply run again: it passes over what it has committed, so that
items that were done meanwhile do not come back.

The format follows the file's name, a .gz at its end left out: .csv has a header with
the column item, and as one likes priority, due and payload; else the other columns are
the payload. .jsonl and .ndjson have an object with "item" a line, everything else is
text with an item a line.`,
		Example: `  howdah checklists import downloads urls.txt
  howdah checklists import downloads files.csv --skip-bad
  find . -type f -print0 | howdah checklists import files - -0`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := formatOf(format, null, args[1])
			if err != nil {
				return err
			}
			in, size, err := c.openInput(args[1])
			if err != nil {
				return err
			}
			defer in.Close()
			if size >= 0 {
				opt.ID = sourceID(args[0], args[1])
			}
			if skipBad {
				opt.SkipBad = func(err error) { c.note("left out: " + err.Error()) }
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				bar := c.progress("import "+printable(args[0]), size)
				src := counted(bar, checklists.ReadItems(bar.reader(in), f))
				done, err := interruptible(ctx, func() (checklists.Imported, error) {
					return client.Checklists.Import(ctx, args[0], src, opt)
				})
				bar.finish()
				if err == nil {
					return c.imported(done)
				}
				if errors.Is(err, checklists.ErrChanged) {
					c.note("--again imports it from the start; what is there is skipped")
				} else if done.Added+done.Skipped > 0 {
					advice := "run it again to go on"
					if errors.Is(err, fault.Invalid) {
						advice = "mend the file and run it again, or leave such items out with --skip-bad"
					}
					c.note(fmt.Sprintf("before the error: added %d, skipped %d; %s", done.Added, done.Skipped, advice))
				}
				return err
			})
		},
	}
	formatFlags(cmd, &format, &null)
	cmd.Flags().BoolVar(&opt.Again, "again", false, "from the start, also where an import of this file was interrupted")
	cmd.Flags().BoolVar(&skipBad, "skip-bad", false, "leave out, and tell, what cannot be stored")
	return cmd
}

// sourceID is by what an import of a file is known that is run again: "" where its
// path cannot be kept.
func sourceID(list, path string) string {
	id, err := filepath.Abs(path)
	if err != nil || pg.CheckText("file", id) != nil || len(list)+len(id) > checklists.MaxName {
		return ""
	}
	return id
}

// interruptible runs fn, and leaves it alone with a source that has fallen silent
// when ctx ends: the program is about to.
func interruptible[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := fn()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	select { // it ends by itself where it was not reading
	case r := <-done:
		return r.value, r.err
	case <-time.After(2 * time.Second):
		var none T
		return none, ctx.Err()
	}
}

func (c *cli) imported(done checklists.Imported) error {
	words := fmt.Sprintf("added %d, skipped %d", done.Added, done.Skipped)
	if done.Resumed > 0 {
		words += fmt.Sprintf(", resumed after %d", done.Resumed)
	}
	if done.Bad > 0 {
		words += fmt.Sprintf(", left out %d", done.Bad)
	}
	return c.result(words, done)
}

func (c *cli) checklistsExport() *cobra.Command {
	var format string
	var null bool
	var state checklists.State
	cmd := &cobra.Command{
		Use:   "export LIST",
		Short: "The items of a list, all or those in some state",
		Example: `  howdah checklists export downloads > names.txt
  howdah checklists export downloads --state left -0 | xargs -0 ls -l
  howdah checklists export downloads --format jsonl`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := formatOf(format, null, "")
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return checklists.WriteItems(c.out, f, client.Reads().Checklists.Export(ctx, args[0], state))
			})
		},
	}
	formatFlags(cmd, &format, &null)
	cmd.Flags().StringVar((*string)(&state), "state", "", strings.Join(checklists.States, ", "))
	return cmd
}

func formatFlags(cmd *cobra.Command, format *string, null *bool) {
	cmd.Flags().StringVar(format, "format", "", strings.Join(checklists.Formats, ", "))
	cmd.Flags().BoolVarP(null, "null", "0", false, "items end with a NUL byte, as xargs -0 has it")
	cmd.MarkFlagsMutuallyExclusive("format", "null")
}

// formatOf is the format asked for, else the one of a file's name.
func formatOf(format string, null bool, path string) (checklists.Format, error) {
	path = strings.TrimSuffix(strings.ToLower(path), ".gz")
	switch ext := filepath.Ext(path); {
	case null:
		return checklists.NUL, nil
	case format == "" && (ext == ".jsonl" || ext == ".ndjson"):
		return checklists.JSONL, nil
	case format == "" && ext == ".csv":
		return checklists.CSV, nil
	case format == "":
		return checklists.Text, nil
	}
	for _, known := range checklists.Formats {
		if format == known {
			return checklists.Format(format), nil
		}
	}
	return "", pg.Refuse("--format", "%q; want one of %s", format, strings.Join(checklists.Formats, ", "))
}

// openInput opens a file, or stdin for "-"; size is -1 where it is not known.
func (c *cli) openInput(path string) (in io.ReadCloser, size int64, err error) {
	if path == "-" {
		return io.NopCloser(c.in), -1, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, pg.Refuse("file", "%v", err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return f, -1, nil
	case info.IsDir():
		f.Close()
		return nil, 0, pg.Refuse("file", "%s is a directory", path)
	case !info.Mode().IsRegular():
		return f, -1, nil
	}
	return f, info.Size(), nil
}
