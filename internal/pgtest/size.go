package pgtest

// Size returns how many rows, lines or rounds a test takes: full, or raced under the
// race detector, to which many of a kind show no more than some, while each costs it
// many times as much. Smaller, but never none: no test is left out.
func Size(full, raced int) int {
	if underRace {
		return raced
	}
	return full
}
