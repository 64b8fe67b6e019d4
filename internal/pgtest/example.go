package pgtest

import "fmt"

// ForExample creates an empty database for an Example, which has no testing.TB
// to fail: it panics instead. The caller drops the database.
func ForExample() (url string, drop func()) {
	shared.once.Do(startShared)
	name := uniqueName()
	must := func(err error) {
		if err != nil {
			panic(fmt.Sprintf("pgtest: %v", err))
		}
	}
	must(shared.err)
	must(execute(shared.url, createDatabase(name, template0)))
	return withDatabase(shared.url, name), func() { must(alone(shared.url, dropDatabase(name))) }
}
