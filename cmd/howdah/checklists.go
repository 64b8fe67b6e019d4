package main

import (
	"bufio"
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

func (c *cli) checklists() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "checklists",
		Short: "Items to get through, and how often each was attempted",
		Example: `  howdah checklists import downloads urls.txt
  howdah checklists page downloads --limit 10
  howdah checklists increment downloads a.txt
  howdah checklists delete downloads b.txt`,
		Args: cobra.NoArgs,
		RunE: help,
	}
	cmd.AddCommand(
		c.checklistsInsert(),
		c.checklistsIncrement(),
		c.checklistsDelete(),
		c.checklistsGet(),
		c.checklistsPage(),
		c.checklistsImport(),
		c.checklistsExport(),
		c.checklistsLists(),
		c.checklistsRename(),
		c.checklistsDrop(),
		c.checklistsClaim(),
		c.checklistsDone(),
		c.checklistsFail(),
		c.checklistsRelease(),
		c.checklistsExtend(),
		c.checklistsKill(),
		c.checklistsRedrive(),
		c.checklistsFind(),
		c.checklistsProgress(),
		c.checklistsRecount(),
		c.checklistsSet(),
		c.checklistsPause("pause", "Let claims get nothing; all else goes on", true),
		c.checklistsPause("resume", "Let claims get what is ready again", false),
	)
	return cmd
}

func (c *cli) checklistsIncrement() *cobra.Command {
	return c.onItems("increment", "Add an attempt to items",
		func(ctx context.Context, s *checklists.Store, list string, items []string) error {
			n, err := s.Increment(ctx, list, items...)
			if err != nil {
				return err
			}
			return c.result(fmt.Sprintf("incremented %d", n), map[string]int64{"incremented": n})
		})
}

func (c *cli) checklistsDelete() *cobra.Command {
	return c.onItems("delete", "Take items off a list",
		func(ctx context.Context, s *checklists.Store, list string, items []string) error {
			n, err := s.Delete(ctx, list, items...)
			if err != nil {
				return err
			}
			return c.result(fmt.Sprintf("deleted %d", n), map[string]int64{"deleted": n})
		})
}

// onItems is a command about items that are named on the line, or on stdin
// where the only one is "-".
func (c *cli) onItems(verb, short string, do func(context.Context, *checklists.Store, string, []string) error) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " LIST ITEM...",
		Short: short,
		Long:  short + ". A single - reads the items from stdin, one a line.",
		Example: fmt.Sprintf(`  howdah checklists %[1]s downloads a.txt b.txt
  howdah checklists %[1]s downloads - < names.txt`, verb),
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			items := args[1:]
			if len(items) == 1 && items[0] == "-" {
				var err error
				if items, err = c.readNames(); err != nil {
					return err
				}
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				return do(ctx, client.Checklists, args[0], items)
			})
		},
	}
}

func (c *cli) checklistsGet() *cobra.Command {
	return &cobra.Command{
		Use:     "get LIST ITEM",
		Short:   "One item",
		Example: "  howdah checklists get downloads a.txt",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				item, err := client.Checklists.Get(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				return c.result(itemWords(item), item)
			})
		},
	}
}

func itemWords(item checklists.Item) string {
	words := fmt.Sprintf("%s  attempts %d", printable(item.Name), item.Attempts)
	if item.Priority != 0 {
		words += fmt.Sprintf("  priority %d", item.Priority)
	}
	if !item.State.IsZero() {
		words += "  " + string(item.State)
	}
	if !item.Due.IsZero() {
		words += " until " + clock(item.Due)
	}
	if item.Error != "" {
		words += "  error: " + printable(item.Error)
	}
	if item.Payload != nil {
		words += "  payload: " + printable(string(item.Payload))
	}
	return words
}

func (c *cli) checklistsPage() *cobra.Command {
	var page page
	cmd := &cobra.Command{
		Use:     "page LIST",
		Short:   "A page of items, in order",
		Example: "  howdah checklists page downloads --limit 2 --after a.txt",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				items, err := client.Reads().Checklists.Page(ctx, args[0], page.start(cmd), page.limit)
				if err != nil {
					return err
				}
				return rows(c, []string{"item", "attempts", "state"}, func(i checklists.Item) []any {
					return []any{i.Name, i.Attempts, orDash(string(i.State))}
				}, sequence(items))
			})
		},
	}
	page.flags(cmd)
	return cmd
}

func (c *cli) checklistsImport() *cobra.Command {
	var format string
	var null bool
	cmd := &cobra.Command{
		Use:   "import LIST FILE",
		Short: "Put the items of a file on a list; - is stdin",
		Long: `Puts the items of a file on a list and skips those already there, so that an
import that was interrupted is simply run again. The format follows the file's
name: .jsonl or .ndjson have an object with "item" a line, everything else is text
with an item a line.`,
		Example: `  howdah checklists import downloads urls.txt
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
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				bar := c.progress("import "+printable(args[0]), size)
				src := bar.items(checklists.ReadItems(bar.reader(in), f))
				done, err := interruptible(ctx, func() (checklists.Imported, error) {
					return client.Checklists.Import(ctx, args[0], src, checklists.ImportOptions{})
				})
				bar.finish()
				if err != nil && done.Added+done.Skipped > 0 {
					advice := "run it again to go on"
					if errors.Is(err, fault.Invalid) {
						advice = "mend the file and run it again; what is there is skipped"
					}
					c.note(fmt.Sprintf("before the error: added %d, skipped %d; %s", done.Added, done.Skipped, advice))
				}
				if err != nil {
					return err
				}
				return c.imported(done)
			})
		},
	}
	formatFlags(cmd, &format, &null)
	return cmd
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
	return c.result(fmt.Sprintf("added %d, skipped %d", done.Added, done.Skipped), done)
}

func (c *cli) checklistsExport() *cobra.Command {
	var format string
	var null bool
	cmd := &cobra.Command{
		Use:   "export LIST",
		Short: "All items of a list",
		Example: `  howdah checklists export downloads > names.txt
  howdah checklists export downloads -0 | xargs -0 ls -l
  howdah checklists export downloads --format jsonl`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := formatOf(format, null, "")
			if err != nil {
				return err
			}
			return c.with(cmd, func(ctx context.Context, client *howdah.Client) error {
				out := bufio.NewWriterSize(c.out, 64<<10)
				for item, err := range client.Reads().Checklists.All(ctx, args[0]) {
					if err == nil {
						err = checklists.WriteItem(out, f, item)
					}
					if err != nil {
						out.Flush() // what came before it was read well
						return err
					}
				}
				return out.Flush()
			})
		},
	}
	formatFlags(cmd, &format, &null)
	return cmd
}

// page is the flags of commands that print one.
type page struct {
	after string
	limit int
}

func (p *page) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.after, "after", "", "begin after this name; the empty name is a name too")
	cmd.Flags().IntVar(&p.limit, "limit", 100, fmt.Sprintf("at most so many, 1 to %d", checklists.MaxPage))
}

// start is nil where --after was not given.
func (p *page) start(cmd *cobra.Command) *string {
	if cmd.Flags().Changed("after") {
		return &p.after
	}
	return nil
}

func formatFlags(cmd *cobra.Command, format *string, null *bool) {
	cmd.Flags().StringVar(format, "format", "", strings.Join(checklists.Formats, ", "))
	cmd.Flags().BoolVarP(null, "null", "0", false, "items end with a NUL byte, as xargs -0 has it")
	cmd.MarkFlagsMutuallyExclusive("format", "null")
}

// formatOf is the format asked for, else the one of a file's name.
func formatOf(format string, null bool, path string) (checklists.Format, error) {
	switch ext := strings.ToLower(filepath.Ext(path)); {
	case null:
		return checklists.NUL, nil
	case format == "" && (ext == ".jsonl" || ext == ".ndjson"):
		return checklists.JSONL, nil
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
