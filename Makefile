# make test   everything that must hold, with what it needs installed first
# make bench  the measured promises, printed; bench/results/ keeps the last
# make fuzz   each fuzz target for a while
# make cross  that everything builds for every system that is supported
# make mutate what of the code that decides about authority no test holds; goes on where it stopped
GO   ?= go
TOOL  = $(GO) tool -modfile=tools/go.mod
FUZZ ?= 30s

.PHONY: build cross test test-386 deps fmt deadcode lint bench fuzz mutate
build:
	$(GO) build -o bin/watchword ./cmd/watchword

# Everything for Linux; the command, which is CLI and agent, and the SDKs for the others.
cross:
	@for t in linux/amd64 linux/arm64 linux/riscv64 linux/386 linux/arm/6 linux/arm/7 darwin/amd64 darwin/arm64 windows/amd64; do \
	  set -- $$(echo $$t | tr / ' '); what=./...; test $$1 = linux || what="./cmd/watchword ./sdk/..."; \
	  echo $$t; CGO_ENABLED=0 GOOS=$$1 GOARCH=$$2 GOARM=$$3 $(GO) build $$what || exit 1; done

# What computes with numbers, where an int has 32 bits: packages whose tests need neither SQLite nor an outside program.
test-386:
	test "$$($(GO) env GOHOSTARCH)" != amd64 || CGO_ENABLED=0 GOARCH=386 $(GO) test ./api ./audit/... ./authn ./bus ./internal/... ./jose ./mqtt/packet ./policy ./registry ./sdk/verify ./session ./token ./twin

test: deps fmt deadcode
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	$(GO) test ./bench
	cd tools && $(GO) test ./mutate ./release
	cd peers && $(GO) vet . && $(GO) tool -modfile=../tools/go.mod staticcheck . && $(GO) test .
	$(MAKE) test-386
	$(GO) test -run UnderASecond ./server
	WATCHWORD_OUTSIDE=required $(GO) test -race -timeout 20m ./...

fmt:
	@bad=$$($(TOOL) gofumpt -l .); test -z "$$bad" || { echo "not gofumpt'ed:"; echo "$$bad"; exit 1; }

# Functions that no program and no test reaches, other than those of tools/deadcode.txt: examples without output, which
# are compiled only. With the tag of the race detector, under which the order of locks is checked.
deadcode:
	@all=$$($(TOOL) deadcode -tags race -test -f '{{$$p := .Path}}{{range .Funcs}}{{$$p}}.{{.Name}}{{println}}{{end}}' ./...) || exit 1; \
	found=$$(printf '%s\n' "$$all" | grep -v '^$$' | grep -vxFf tools/deadcode.txt); \
	test -z "$$found" || { echo "not reached from any program or test; delete it, or state it in tools/deadcode.txt:"; echo "$$found"; exit 1; }

# The outside programs that tests use, from Debian's packages and npm, where they are missing; and libraries of others
# in a program and a module of their own (docs/decisions/0025-modules.md).
deps:
	@tools/install-outside.sh
	$(GO) build -C peers -o ../bin/outside/peers .

lint:
	golangci-lint run

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./jose ./policy ./token ./bench
	cd peers && $(GO) test -run '^$$' -bench . -benchmem .
	$(GO) run ./bench/load
	$(GO) run ./bench/load -log 3 -rate 200 -seconds 8
	$(GO) run ./bench/auditload
	$(GO) run ./bench/mqttload
	$(GO) run ./bench/cut

fuzz:
	@for t in $$(grep -rhoE 'func (Fuzz[A-Za-z]+)' --include=*_test.go jose token audit policy sdk mqtt cmd | awk '{print $$2}'); do \
	  p=$$(grep -rlE "func $$t\(" --include=*_test.go jose token audit policy sdk mqtt cmd | head -1 | xargs dirname); \
	  $(GO) test -run '^$$' -fuzz "^$$t$$" -fuzztime $(FUZZ) ./$$p || exit 1; done

# MUTATE="-again" judges survivors anew, after tests were added; MUTATE="-report" prints what is known.
mutate:
	cd tools && $(GO) build -o ../bin/mutate ./mutate
	nice -n 19 bin/mutate $(MUTATE)
