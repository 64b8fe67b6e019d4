package logical

import "time"

// Impatient has a pump wait for nothing, and nobody wait for it, for longer than d.
func (p *Pump) Impatient(d time.Duration) { p.stopped = d }
