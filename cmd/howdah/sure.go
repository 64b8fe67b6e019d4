package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/howdah-db/howdah/pg"
)

var errNotSure = errors.New("not confirmed: nothing was done")

// sure asks, where yes was not given, whether to do what cannot be taken back. What is not
// confirmed is an error, so that nobody takes it for done; who cannot be asked, as there
// is no terminal, has to say --yes.
func (c *cli) sure(ctx context.Context, yes bool, what string) error {
	switch {
	case yes:
		return nil
	case !isTerminal(c.in):
		return pg.Refuse("--yes", "is missing: without a terminal nobody can be asked whether to %s", what)
	}
	fmt.Fprintf(c.err, "%s? [y/N] ", what)
	answer, err := interruptible(ctx, func() (string, error) { return bufio.NewReader(c.in).ReadString('\n') })
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer == "y" || answer == "yes" {
		return nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return errNotSure
}
