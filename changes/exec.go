package changes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Exec returns a Handler that runs a command for the changes it is handed, which are
// on its stdin, a line of JSON each, and takes exit code 0 for done: at least once.
// The environment has HOWDAH_CONSUMER, the consumer's name, and HOWDAH_POSITION, the
// position of the last of the changes. stdout and stderr are the program's own; the
// last 1,024 bytes of stderr are the error. With ctx end the command and whatever it
// started: by SIGTERM, and a second later by SIGKILL. What one that fails leaves running is
// killed, as the next try would start it again; what one that does its work leaves, stays.
func Exec(argv ...string) Handler {
	const op = "changes: exec"
	return func(ctx context.Context, _ pgx.Tx, cs []Change) error {
		if len(argv) == 0 {
			return &stopError{pg.Wrap(op, pg.Refuse("command", "there is none"))}
		}
		if len(cs) == 0 {
			return nil
		}
		text, err := jsonLines(cs)
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "HOWDAH_CONSUMER="+consumerOf(ctx), "HOWDAH_POSITION="+cs[len(cs)-1].Position.String())
		if err := runCommand(ctx, cmd, text); err != nil {
			return fmt.Errorf("%s: %s: %w", op, argv[0], pg.Foreign(err))
		}
		return nil
	}
}

// runCommand runs cmd with text on its stdin.
func runCommand(ctx context.Context, cmd *exec.Cmd, text []byte) error {
	said := &tailOf{most: 1024}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), os.Stdout, io.MultiWriter(said, os.Stderr)
	kill := group(cmd)
	defer tie(cmd.SysProcAttr)()
	cmd.WaitDelay = time.Second // then it is killed; nor is a child waited for that holds its stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil {
		err = nil // it ended well, and has left something
	}
	if (err != nil || ctx.Err() != nil) && cmd.Process != nil {
		kill() // whatever of the group is left
	}
	var exit *exec.ExitError
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case !errors.As(err, &exit):
		return err // nil, or it never ran
	}
	if text := strings.TrimSpace(strings.ToValidUTF8(said.String(), "")); text != "" {
		return fmt.Errorf("%w: %s", err, strings.ReplaceAll(text, "\x00", "")) // it is going to be stored
	}
	return err
}

// tailOf keeps the end of what is written.
type tailOf struct {
	bytes.Buffer
	most int
}

func (t *tailOf) Write(b []byte) (int, error) {
	t.Buffer.Write(b)
	if over := t.Len() - t.most; over > 0 {
		t.Next(over)
	}
	return len(b), nil
}
