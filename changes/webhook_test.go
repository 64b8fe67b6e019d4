package changes_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/howdah-db/howdah/changes"
	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/internal/pgtest"
)

const (
	oldSecret = "whsec_aG93ZGFoIHRlc3Qgc2VjcmV0IG51bWJlciBvbmUgMzI="
	newSecret = "a secret that is written as it is"
)

func TestWebhookSignatureVectors(t *testing.T) {
	t.Parallel()
	for _, v := range readSinkVectors(t).WebhookSignature {
		secrets := v.Secrets
		if v.Secret != "" {
			secrets = []string{v.Secret}
		}
		keys, err := changes.WebhookConfig{URL: "https://example.com", Secrets: secrets}.Keys()
		if err != nil {
			t.Fatal(err)
		}
		if got := changes.Signatures(keys, v.ID, v.Timestamp, []byte(v.Body)); got != v.Signature {
			t.Errorf("got  %s\nwant %s", got, v.Signature)
		}
	}
}

// posted is a request as a receiver sees it.
type posted struct {
	http.Header
	body        []byte
	user, basic string
}

// receiver takes requests, and answers them as it is told to.
type receiver struct {
	*httptest.Server
	mu   sync.Mutex
	all  []posted
	conn atomic.Int32 // that were made
}

func newReceiver(t *testing.T, answer http.HandlerFunc) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil || req.Method != http.MethodPost {
			t.Errorf("%s: %v", req.Method, err)
		}
		p := posted{Header: req.Header, body: body}
		p.user, p.basic, _ = req.BasicAuth()
		r.mu.Lock()
		r.all = append(r.all, p)
		r.mu.Unlock()
		answer(w, req)
	}))
	r.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			r.conn.Add(1)
		}
	}
	r.Start()
	t.Cleanup(r.Close)
	return r
}

// received are the requests since the last call.
func (r *receiver) received() (all []posted) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all, r.all = r.all, nil
	return all
}

func (r *receiver) config() changes.WebhookConfig {
	return changes.WebhookConfig{URL: r.URL + "/hook?token=s3cret", AllowPrivate: true}
}

// verifies is what a receiver does that knows the secret's key.
func (p *posted) verifies(key []byte) bool {
	for signature := range strings.FieldsSeq(p.Get("webhook-signature")) {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", p.Get("webhook-id"), p.Get("webhook-timestamp"), p.body)
		if signature == "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
			return true
		}
	}
	return false
}

func ok(http.ResponseWriter, *http.Request) {}

func TestWebhook(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders SELECT g, '<note>' FROM generate_series(1, 20) g`)
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	cfg := r.config()
	cfg.URL = strings.Replace(cfg.URL, "http://", "http://ada:pass@", 1)
	cfg.Secrets = []string{newSecret, oldSecret}
	began := time.Now().Unix()
	h := changes.Webhook(cfg)
	s.mustHand(t, h, cs)
	all := r.received()
	if len(all) != len(cs) || r.conn.Load() != 1 {
		t.Fatalf("%d requests on %d connections, want %d on 1", len(all), r.conn.Load(), len(cs))
	}
	for i, p := range all {
		var e changes.CloudEvent
		if err := json.Unmarshal(p.body, &e); err != nil || e.ID != cs[i].Position.String() || jsonOf(t, e.Data) != jsonOf(t, cs[i]) {
			t.Errorf("%v: %s", err, p.body)
		}
		if want := fmt.Sprintf("%d-%d", cs[i].Position.Commit, cs[i].Position.ID); p.Get("webhook-id") != want {
			t.Errorf("webhook-id %q, want %q", p.Get("webhook-id"), want)
		}
		var at int64
		if _, err := fmt.Sscan(p.Get("webhook-timestamp"), &at); err != nil || at < began || at > time.Now().Unix() {
			t.Errorf("webhook-timestamp %q, %v", p.Get("webhook-timestamp"), err)
		}
		if p.user != "ada" || p.basic != "pass" || p.Get("content-type") != "application/cloudevents+json; charset=utf-8" {
			t.Errorf("headers %v", p.Header)
		}
		old, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(oldSecret, "whsec_"))
		if err != nil || !p.verifies(old) || !p.verifies([]byte(newSecret)) || p.verifies([]byte("another")) {
			t.Errorf("signature %q, %v", p.Get("webhook-signature"), err)
		}
	}

	s.mustHand(t, h, cs[:1]) // a repeat
	if again := r.received(); again[0].Get("webhook-id") != all[0].Get("webhook-id") || string(again[0].body) != string(all[0].body) {
		t.Errorf("again %v %s", again[0].Header, again[0].body)
	}
}

func TestWebhookBatch(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders SELECT g, '' FROM generate_series(1, 20) g`)
	r := newReceiver(t, ok)
	cfg := r.config()
	cfg.Batch = true
	h := changes.Webhook(cfg)
	s.mustHand(t, h, cs)
	s.mustHand(t, h, cs[:1])
	s.mustHand(t, h, nil)
	all := r.received()
	if len(all) != 2 {
		t.Fatalf("%d requests, want 2", len(all))
	}
	first, last := cs[0].Position, cs[19].Position
	for i, want := range []string{fmt.Sprintf("%d-%d-%d-%d", first.Commit, first.ID, last.Commit, last.ID), fmt.Sprintf("%d-%d", first.Commit, first.ID)} {
		p := all[i]
		if p.Get("webhook-id") != want || p.Get("content-type") != "application/cloudevents-batch+json; charset=utf-8" || p.Get("webhook-signature") != "" {
			t.Errorf("headers %v, want id %s and no signature", p.Header, want)
		}
		var events []changes.CloudEvent
		if err := json.Unmarshal(p.body, &events); err != nil || len(events) != []int{20, 1}[i] || events[0].Data.Position != first {
			t.Errorf("%v: %s", err, p.body)
		}
	}
}

// What each answer means: done, failed, stop, later.
func TestWebhookAnswers(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders VALUES (1, ''), (2, '')`)
	elsewhere := newReceiver(t, ok)
	var answer atomic.Pointer[http.HandlerFunc]
	r := newReceiver(t, func(w http.ResponseWriter, req *http.Request) { (*answer.Load())(w, req) })
	cfg := r.config()
	cfg.Secrets = []string{newSecret}
	cfg.URL = strings.Replace(cfg.URL, "http://", "http://ada:pass@", 1)
	h := changes.Webhook(cfg)
	status := func(code int, retryAfter, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if retryAfter != "" {
				w.Header().Set("Retry-After", retryAfter)
			}
			w.WriteHeader(code)
			io.WriteString(w, body)
		}
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		text   string // of the error; "" = done
		stops  bool
		later  time.Duration
	}{
		"200":                 {answer: status(200, "", strings.Repeat("x", 1<<20))},
		"202, to say nothing": {answer: status(202, "60", "")},
		"500":                 {answer: status(500, "", "it \x00 broke\n"), text: "500 Internal Server Error: it  broke"},
		"500, at length":      {answer: status(500, "", strings.Repeat("é", 1<<20)), text: "500 Internal Server Error: " + strings.Repeat("é", 256)},
		"410":                 {answer: status(410, "60", "unsubscribed"), text: "410 Gone: unsubscribed", stops: true},
		"429":                 {answer: status(429, "120", ""), text: "429 Too Many Requests", later: 2 * time.Minute},
		"503, much later":     {answer: status(503, "999999999999", ""), text: "503 Service Unavailable", later: time.Hour},
		"503, nonsense":       {answer: status(503, "soon", ""), text: "503 Service Unavailable"},
		"503, at a date":      {answer: status(503, time.Now().Add(100*time.Hour).UTC().Format(http.TimeFormat), ""), text: "503 Service Unavailable", later: time.Hour},
		"302":                 {answer: func(w http.ResponseWriter, req *http.Request) { http.Redirect(w, req, elsewhere.URL, http.StatusFound) }, text: "302 Found; redirects are not followed"},
		"307": {answer: func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, elsewhere.URL, http.StatusTemporaryRedirect)
		}, text: "307 Temporary Redirect; redirects are not followed"},
		"no HTTP":                {answer: hijacked("SSH-2.0-OpenSSH\r\n\r\n"), text: "malformed HTTP response"},
		"cut off":                {answer: hijacked(""), text: "EOF"},
		"headers without an end": {answer: hijacked("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20)), text: "exceeded"},
	} {
		answer.Store(&tc.answer)
		err := s.hand(t.Context(), h, cs)
		if tc.text == "" {
			if err != nil || len(r.received()) != 2 {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.text) || changes.Stops(err) != tc.stops || changes.After(err) != tc.later {
			t.Errorf("%s: %v, stops %v, later %s", name, err, changes.Stops(err), changes.After(err))
			continue
		}
		text := err.Error()
		if n := len(r.received()); n != 1 {
			t.Errorf("%s: %d requests; the second must wait for the first", name, n)
		}
		if !strings.HasPrefix(text, "changes: webhook: 127.0.0.1:") || len(text) > 800 || strings.ContainsRune(text, 0) || errors.Is(err, fault.Unavailable) {
			t.Errorf("%s: %s", name, text)
		}
		for _, secret := range []string{"s3cret", "ada", "pass", newSecret} {
			if strings.Contains(text, secret) {
				t.Errorf("%s: %q in %s", name, secret, text)
			}
		}
	}
	if n := len(elsewhere.received()); n != 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

// hijacked answers with these bytes and closes the connection.
func hijacked(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		io.WriteString(conn, text)
		conn.Close()
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 20, 14, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "-1": 0, "1.5": 0, "7": 7 * time.Second, "3601": time.Hour, "18446744073709551616": 0,
		"Fri, 20 Nov 2026 14:00:30 GMT": 30 * time.Second, "Fri, 20 Nov 2026 13:00:00 GMT": 0, "Fri, 20 Nov 2026 16:00:00 GMT": time.Hour,
	} {
		if got := changes.RetryAfter(text, now); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// A receiver that takes the request and says nothing, or never comes to an end.
func TestWebhookBlackHole(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders VALUES (1, '')`)
	arrived, over := make(chan struct{}, 10), make(chan struct{})
	hole := newReceiver(t, func(http.ResponseWriter, *http.Request) { arrived <- struct{}{}; <-over })
	t.Cleanup(func() { close(over) })

	cfg := hole.config()
	cfg.Timeout = 50 * time.Millisecond
	err := s.hand(t.Context(), changes.Webhook(cfg), cs)
	if err == nil || !strings.Contains(err.Error(), "no answer within 50ms") || changes.Stops(err) || errors.Is(err, fault.Unavailable) {
		t.Errorf("timeout: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.hand(ctx, changes.Webhook(hole.config()), cs) }()
	pgtest.Receive(t, arrived, "the request")
	cancel()
	if err := pgtest.Receive(t, done, "the end of the handler"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}

	endless := newReceiver(t, func(w http.ResponseWriter, req *http.Request) {
		for req.Context().Err() == nil {
			if _, err := io.WriteString(w, strings.Repeat("x", 1<<16)); err != nil {
				return
			}
		}
	})
	s.mustHand(t, changes.Webhook(endless.config()), cs)
}

// Addresses are judged when they are dialled: names do not help.
func TestWebhookPrivateAddresses(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	cs := s.write(t, `INSERT INTO shop.orders VALUES (1, '')`)
	r := newReceiver(t, ok)
	_, port, err := net.SplitHostPort(r.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	err = s.hand(t.Context(), changes.Webhook(changes.WebhookConfig{URL: "http://localhost:" + port}), cs)
	if err == nil || !strings.Contains(err.Error(), "is not a public address") || changes.Stops(err) {
		t.Errorf("by name: %v", err)
	}
	err = s.hand(t.Context(), changes.Webhook(changes.WebhookConfig{URL: r.URL}), cs)
	if !errors.Is(err, fault.Invalid) || !changes.Stops(err) || !strings.Contains(err.Error(), "127.0.0.1 is not a public address; private ones have to be allowed: --allow-private") {
		t.Errorf("by address: %v", err)
	}
	if n := len(r.received()); n != 0 || r.conn.Load() != 0 {
		t.Errorf("%d requests, %d connections", n, r.conn.Load())
	}
	s.mustHand(t, changes.Webhook(changes.WebhookConfig{URL: "http://localhost:" + port, AllowPrivate: true}), cs)

	for _, text := range []string{
		"127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255",
		"169.254.169.254", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "224.0.0.1", "239.1.1.1", "ff02::1", "255.255.255.255", "240.0.0.1",
		"192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1",
		"2001::1", "2001:db8::1", "2002:7f00:1::", "100::1", "3fff::1", "4000::1",
	} {
		if changes.Public(netip.MustParseAddr(text)) {
			t.Errorf("%s is public", text)
		}
	}
	for _, text := range []string{"8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"} {
		if !changes.Public(netip.MustParseAddr(text)) {
			t.Errorf("%s is not public", text)
		}
	}
}

func TestWebhookConfigCheck(t *testing.T) {
	t.Parallel()
	const url = "https://example.com/hook"
	for field, all := range map[string][]changes.WebhookConfig{
		"url": {{}, {URL: "example.com"}, {URL: "ftp://example.com"}, {URL: "https://"}, {URL: "https://:80"}, {URL: "https://ada:pass@exa mple/s3cret"}, {URL: "http://[::1]/"}, {URL: "http://169.254.169.254/"}, {URL: "http://[fe80::1%25eth0]/"}},
		"secrets[0]": {{URL: url, Secrets: []string{""}}, {URL: url, Secrets: []string{"s3cret"}}, {URL: url, Secrets: []string{"whsec_"}},
			{URL: url, Secrets: []string{"whsec_s3cret-is-no-base64-at-all"}}, {URL: url, Secrets: []string{"whsec_czNjcmV0"}}},
		"secrets[1]": {{URL: url, Secrets: []string{oldSecret, "pass"}}},
		"timeout":    {{URL: url, Timeout: -1}},
	} {
		for _, cfg := range all {
			err := cfg.Check()
			invalid(t, fmt.Sprintf("%+v", cfg), err, field)
			if err != nil && slices.ContainsFunc([]string{"s3cret", "pass", "ada"}, func(s string) bool { return strings.Contains(err.Error(), s) }) {
				t.Errorf("%v repeats it", err)
			}
		}
	}
	for _, cfg := range []changes.WebhookConfig{{URL: url}, {URL: url, Secrets: []string{oldSecret, newSecret}}, {URL: "http://10.0.0.1", AllowPrivate: true}, {URL: "http://8.8.8.8:81"}} {
		if err := cfg.Check(); err != nil {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}
