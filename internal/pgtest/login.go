package pgtest

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// quickLogin has the password in url hashed once where PostgreSQL has it hashed 4,096
// times: in tests, which connect all the time, that was a seventh of what they computed
// under the race detector. The verifier is that of RFC 5803.
func quickLogin(url string) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	const times, salt = 1, "of the test server"
	key, err := pbkdf2.Key(sha256.New, cfg.Password, []byte(salt), times, sha256.Size)
	if err != nil {
		return err
	}
	keyed := func(text string) []byte {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
	stored := sha256.Sum256(keyed("Client Key"))
	base64 := base64.StdEncoding.EncodeToString
	verifier := fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", times, base64([]byte(salt)), base64(stored[:]), base64(keyed("Server Key")))
	return execute(url, "ALTER ROLE "+pgx.Identifier{cfg.User}.Sanitize()+" PASSWORD '"+verifier+"'")
}
