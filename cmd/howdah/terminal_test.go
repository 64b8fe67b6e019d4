package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

// onTTY runs cmd, to which attach gives a new terminal, and returns all that the
// terminal showed.
func onTTY(cmd *exec.Cmd, typed string, attach func(tty *os.File)) (string, error) {
	terminal, tty, err := pty.Open()
	if err != nil {
		return "", err
	}
	defer terminal.Close()
	attach(tty)
	if _, err := io.WriteString(terminal, typed); err != nil {
		return "", err
	}
	var out bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(&out, terminal) // ends with an error when the other side is closed
	}()
	err = cmd.Run()
	tty.Close()
	<-read // before terminal is closed, which would lose what has not been read yet
	return out.String(), err
}

// terminal runs a line of shell that has a terminal, /dev/tty, and prints what it
// showed; with -stdin the terminal is the line's input too, and the file is typed:
// terminal [-stdin FILE] LINE. It stands in for ttyin and ttyout, which on a busy
// machine close the terminal before they have read it.
func terminal(ts *testscript.TestScript, neg bool, args []string) {
	typed := ""
	stdin := len(args) == 3 && args[0] == "-stdin"
	if stdin {
		typed = ts.ReadFile(args[1]) + "\x04"
		args = args[2:]
	}
	if neg || len(args) != 1 {
		ts.Fatalf("usage: terminal [-stdin file] line")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", args[0])
	cmd.Dir, cmd.Env = ts.MkAbs("."), ts.Value(environment{}).(*testscript.Env).Vars
	var other bytes.Buffer
	cmd.Stdout, cmd.Stderr = &other, &other
	out, err := onTTY(cmd, typed, func(tty *os.File) {
		cmd.ExtraFiles = []*os.File{tty}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
		if stdin {
			cmd.Stdin = tty
		}
	})
	fmt.Fprint(ts.Stdout(), out)
	fmt.Fprint(ts.Stderr(), other.String())
	ts.Check(err)
}

// environment is the key of a script's environment among its values.
type environment struct{}
