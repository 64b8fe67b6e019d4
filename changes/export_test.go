package changes

import "time"

// MostSpecific chooses a consumer's handler.
var MostSpecific = mostSpecific

// Compact is compact.
var Compact = compact

// Hurry lets a consumer wait for nothing longer than a test likes to.
func (c *Consumer) Hurry() {
	const ms = time.Millisecond
	c.pace = pace{
		inPlace: []time.Duration{ms, 2 * ms, 3 * ms},
		parked:  5 * ms, most: 20 * ms,
		probe: 5 * ms, probes: 20 * ms,
		unseen: 50 * ms, rival: 20 * ms, grace: 500 * ms,
	}
}

// Stop and Later are the errors that handlers of this package have for their consumer.
func Stop(err error) error { return &stopError{err} }

func Later(err error, after time.Duration) error { return &laterError{err, after} }

// Failpoint has f called at each step of each batch of the process.
func Failpoint(f func(step string)) { failpoint = f }

// PathThrough is pathThrough.
var PathThrough = pathThrough
