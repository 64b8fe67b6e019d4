package pgtest

import "time"

var (
	RemoveDead = removeDead
	UntilIn    = until
	ReceiveIn  = receive[string]
	Alone      = alone
)

// LeakPatience is how long goroutines that tests leave may take to end.
func LeakPatience(d time.Duration) { leakPatience = d }
