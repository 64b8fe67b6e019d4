package pgtest

var (
	RemoveDead = removeDead
	UntilIn    = until
)
