// Package fault names the kinds of failure a caller can act on.
//
// Every error of howdah that a caller can do something about wraps exactly one
// [Kind], so that one table maps kinds to HTTP statuses and one to exit codes,
// and errors.Is(err, fault.Conflict) holds whichever service reported it. An
// error without a kind is a bug or an outage of something unknown.
package fault

// Kind is a kind of failure. It is itself an error, so that sentinels wrap it
// and errors.Is finds it.
type Kind string

const (
	// Invalid: the input can never be accepted; nothing was written. Change it.
	Invalid Kind = "invalid input"
	// Denied: the role or token may not do this. Grant the right, or use another.
	Denied Kind = "permission denied"
	// NotFound: what was named is not there.
	NotFound Kind = "not found"
	// Conflict: the state of things does not allow it. Read again, then decide.
	Conflict Kind = "conflict"
	// Exhausted: a limit is reached or something is too large. Wait, or ask for less.
	Exhausted Kind = "limit exceeded"
	// Unavailable: it may work in a moment. Try again.
	Unavailable Kind = "unavailable"
)

// Error returns the kind in words.
func (k Kind) Error() string { return string(k) }
