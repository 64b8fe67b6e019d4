package pgtest

import (
	"bufio"
	"compress/gzip"
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Restore runs a plain dump of pg_dump, gzipped where its name ends in .gz, on
// the database of url. It needs no client programs: COPY blocks are sent as such.
func Restore(t testing.TB, url, path string) {
	t.Helper()
	if err := restore(url, path); err != nil {
		t.Fatalf("pgtest: restore %s: %v", path, err)
	}
}

func restore(url, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)

	var statements strings.Builder
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if strings.HasPrefix(line, "COPY ") && strings.HasSuffix(line, "FROM stdin;\n") {
			if _, err := conn.Exec(ctx, statements.String()); err != nil {
				return err
			}
			statements.Reset()
			if _, err := conn.PgConn().CopyFrom(ctx, &copyBlock{lines: lines}, strings.TrimSuffix(line, ";\n")); err != nil {
				return err
			}
			continue
		}
		if !strings.HasPrefix(line, `\`) { // \restrict and \unrestrict are psql's
			statements.WriteString(line)
		}
		if err == io.EOF {
			_, err := conn.Exec(ctx, statements.String())
			return err
		}
		if err != nil {
			return err
		}
	}
}

// copyBlock reads lines up to the one that ends a COPY block.
type copyBlock struct {
	lines *bufio.Reader
	rest  []byte
	ended bool
}

func (b *copyBlock) Read(p []byte) (int, error) {
	if len(b.rest) == 0 && !b.ended {
		line, err := b.lines.ReadBytes('\n')
		if err != nil {
			return 0, err
		}
		if string(line) == "\\.\n" {
			b.ended = true
		} else {
			b.rest = line
		}
	}
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}
