# Everything a newcomer needs: make help
.DEFAULT_GOAL := help
SHELL := bash
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
LISTEN ?= 127.0.0.1:8080

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/howdah
	@go build -o bin/howdah ./cmd/howdah

.PHONY: run
run: build ## build howdah and serve on a PostgreSQL of its own (LISTEN=127.0.0.1:8080)
	@exec bin/howdah serve --listen $(LISTEN)

.PHONY: test
test: ## all tests, on a PostgreSQL that they start themselves
	@go test -timeout 30m ./...

# Lint has vetted all; and a process under the detector sleeps a second before it ends.
.PHONY: race
race: ## tests with the race detector, of amounts with less (pgtest.Size): all but those that run howdah as a process, which it does not see into
	@GORACE=atexit_sleep_ms=0 go test -race -vet=off -timeout 30m $$(go list ./... | grep -v /cmd/)

.PHONY: test-matrix
test-matrix: ## the tests on PostgreSQL 14 to 18, fetched with npm
	@.ci/matrix

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "gofmt -w these:"; echo "$$unformatted"; exit 1; fi
	@go vet ./...
	@go run $(STATICCHECK) ./...

.PHONY: fuzz
fuzz: ## each fuzz test for FUZZTIME (20s)
	@for target in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for name in $$(grep -h '^func Fuzz' $$target/*_test.go | sed 's/func \(Fuzz[A-Za-z0-9]*\).*/\1/'); do \
			echo "$$target $$name"; go test -run '^$$' -fuzz "^$$name$$" -fuzztime $${FUZZTIME:-20s} $$target || exit 1; \
		done; done

.PHONY: bench
bench: ## benchmarks: ratios against controls in the same run
	@cd bench && go run .

.PHONY: bench-quick
bench-quick: ## the same with smaller sizes, some minutes
	@cd bench && go run . -quick

.PHONY: bench-docs
bench-docs: ## docs/benchmarks.md from the newest result of make bench
	@cd bench && go run . -docs

# Without those that take long.
.PHONY: bench-smoke
bench-smoke: ## the short benchmarks of changes, once, whatever comes out: that they run
	@cd bench && go run . -quick -rounds 1 -run '^changes/(single-row|INSERT|page|a Consumer, 100|a tick with|COMMIT)'

.PHONY: bench-guard
bench-guard: ## fails when the quick benchmarks miss half of a bar
	@cd bench && go test ./...

.PHONY: check
check: lint bench-smoke race test ## what has to pass before a change lands

.PHONY: clean
clean: ## remove what make built
	@rm -rf bin
