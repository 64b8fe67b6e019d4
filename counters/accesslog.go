package counters

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/howdah-db/howdah/pg"
)

// ParseAccess reads a line of a web server's access log, in the common or the combined
// format:
//
//	203.0.113.7 - alice [17/May/2015:10:05:03 +0000] "GET /a.png HTTP/1.1" 200 2326 "referer" "agent"
//
// The event has no key, is of the line's time, and counts
//
//	requests    1
//	bytes       those that were sent; - is 0
//	status.2xx  1, by the first digit
//	method.GET  1; method.other where the request does not begin with 1 to 16 capitals
//	size        a Hist of the bytes, if there were any
//	visitors    a Distinct of the host
//
// Only the fields up to the bytes are read, whatever follows them. What is no such
// line is Invalid.
func ParseAccess(line string) (Event, error) {
	who, rest, _ := strings.Cut(line, `] "`)
	who, clock, _ := cutLast(who, "[")
	host, who, _ := strings.Cut(who, " ")
	_, user, _ := strings.Cut(who, " ") // whose name may hold spaces and brackets
	request, rest := cutQuoted(rest)
	status, rest, _ := strings.Cut(strings.TrimPrefix(rest, " "), " ")
	sent, _, _ := strings.Cut(rest, " ")
	if host == "" || strings.TrimSpace(user) == "" || clock == "" || status == "" || sent == "" {
		return Event{}, pg.Refuse("access log", `no host ident user [time] "request" status bytes`)
	}
	if !utf8.ValidString(host) || strings.Contains(host, "\x00") {
		return Event{}, pg.Refuse("host", "%q is no text", shorten(host))
	}
	at, err := time.Parse("02/Jan/2006:15:04:05 -0700", clock)
	if err != nil || at.Unix() < firstSecond || at.Unix() > lastSecond {
		return Event{}, pg.Refuse("time", "%q; want such as 17/May/2015:10:05:03 +0000", shorten(clock))
	}
	if len(status) != 3 || !isDigits(status) {
		return Event{}, pg.Refuse("status", "%q; want three digits", shorten(status))
	}
	bytes := whole(0)
	if sent != "-" {
		if len(sent) > 18 || !isDigits(sent) {
			return Event{}, pg.Refuse("bytes", "%q; want a number or -", shorten(sent))
		}
		bytes, _ = parseNumber(sent, MaxDigits, MaxExponent)
	}
	v := Values{
		"requests": whole(1),
		"bytes":    bytes,
		"status":   Values{status[:1] + "xx": whole(1)},
		"method":   Values{methodOf(request): whole(1)},
		"visitors": Distinct(host),
	}
	if bytes.sign() > 0 {
		v["size"] = Hist(bytes)
	}
	return Event{At: at, Values: v}, nil
}

// cutQuoted returns what is before the first quote that no backslash escapes, and what
// follows it: all and nothing where there is none.
func cutQuoted(text string) (before, after string) {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return text[:i], text[i+1:]
		}
	}
	return text, ""
}

// methodOf returns the method of a request: other where that is none.
func methodOf(request string) string {
	method, _, _ := strings.Cut(request, " ")
	if method == "" || len(method) > 16 || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return "other"
	}
	return method
}

func isDigits(text string) bool { return strings.Trim(text, digits) == "" }
