package changes_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
)

// What a receiver does to know who sent a request: secret is one of
// WebhookConfig.Secrets.
func ExampleWebhook_receiver() {
	verified := func(header http.Header, body []byte, secret string) bool {
		key := []byte(secret)
		if text, ok := strings.CutPrefix(secret, "whsec_"); ok {
			var err error
			if key, err = base64.StdEncoding.DecodeString(text); err != nil {
				return false
			}
		}
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", header.Get("webhook-id"), header.Get("webhook-timestamp"), body)
		want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
		for signature := range strings.FieldsSeq(header.Get("webhook-signature")) { // several while secrets change
			if hmac.Equal([]byte(signature), []byte(want)) {
				return true
			}
		}
		return false
	}

	header := http.Header{}
	header.Set("webhook-id", "1042-88213")
	header.Set("webhook-timestamp", "1763648311")
	header.Set("webhook-signature", "v1,5nm9H3uaaI+EbBbR78DtHIT4M5hgrj9+Guagx6OhirE= v1,euc+gJKfOOplkz7isjwRj0mSd8yX9RcUQZi4o5XWU64= v1,hMBUwQcK6e46dVNgEOIKZj5DDzVYuO308RxcSMNXCZg=")
	fmt.Println(verified(header, []byte(`{"id":"1042.88213"}`), "whsec_aG93ZGFoIHRlc3Qgc2VjcmV0IG51bWJlciBvbmUgMzI="))
	fmt.Println(verified(header, []byte(`{"id":"1042.88214"}`), "whsec_aG93ZGFoIHRlc3Qgc2VjcmV0IG51bWJlciBvbmUgMzI="))
	fmt.Println(verified(header, []byte(`{"id":"1042.88213"}`), "00112233445566778899aabbccddeeff"))
	// Output:
	// true
	// false
	// true
}
