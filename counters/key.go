package counters

import (
	"strconv"
	"strings"
)

// Key names a row at the driver's level: its parts, which the separator joins.
type Key []string

func (k Key) join(separator string) string { return strings.Join(k, separator) }

// fullKey returns the key of a bucket in one text.
func fullKey(separator, name string, g Granularity, unix int64) string {
	return name + separator + string(g) + separator + strconv.FormatInt(unix, 10)
}

// splitFull takes the key of a bucket apart, from the right: the name may contain
// the separator. It reports false where key is not one of a bucket.
func splitFull(separator, key string) (name string, g Granularity, unix int64, ok bool) {
	rest, last, ok := cutLast(key, separator)
	if !ok {
		return "", "", 0, false
	}
	unix, err := strconv.ParseInt(last, 10, 64)
	if err != nil || strconv.FormatInt(unix, 10) != last { // +1 and 01 are other keys
		return "", "", 0, false
	}
	name, g, ok = splitPartial(separator, rest)
	return name, g, unix, ok
}

// splitPartial takes apart the key of a bucket whose time is a column.
func splitPartial(separator, key string) (name string, g Granularity, ok bool) {
	name, last, ok := cutLast(key, separator)
	if !ok || name == "" {
		return "", "", false
	}
	if _, _, ok = Granularity(last).parse(); !ok {
		return "", "", false
	}
	return name, Granularity(last), true
}

// cutLast is strings.Cut at the last separator.
func cutLast(s, separator string) (before, after string, ok bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 || separator == "" {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}
