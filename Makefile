# make test   everything that must hold, with what it needs installed first
# make bench  the measured promises, printed; server/bench/results/ keeps the last
# make fuzz   each fuzz target for a while
# make cross  that everything builds for every system that is supported
# make mutate what of the code that decides about authority no test holds; goes on where it stopped
# make deb    Debian packages, in bin/deb
# make tidy   go mod tidy, in each module of the product
#
# The product is three modules (docs/decisions/0025-modules.md) in one workspace, whose packages together are "work" to the go
# command. tools and peers are modules of their own, outside of it.
GO   ?= go
FUZZ ?= 30s
# The race detector, without its check of pointer arithmetic in SQLite, which is C translated to Go: that check took half of
# the time of all tests with a store, and concerns no code of ours.
RACE = -race -gcflags=modernc.org/...=-d=checkptr=0

.PHONY: build cross deb test test-386 tools deps fmt deadcode lint bench fuzz mutate tidy
build:
	$(GO) build -o bin/watchword ./cmd/watchword

# Everything for Linux; the command, which is CLI and agent, and the SDKs for the others.
cross:
	@for t in linux/amd64 linux/arm64 linux/riscv64 linux/386 linux/arm/6 linux/arm/7 darwin/amd64 darwin/arm64 windows/amd64; do \
	  set -- $$(echo $$t | tr / ' '); what=work; test $$1 = linux || what="./cmd/watchword ./sdk/..."; \
	  echo $$t; CGO_ENABLED=0 GOOS=$$1 GOARCH=$$2 GOARM=$$3 $(GO) build $$what || exit 1; done

# Debian packages of the commit. The program for armhf is for ARMv6, so that it runs on the first Raspberry Pi too. A tag v1.2.0-rc.1
# becomes version 1.2.0~rc.1, which is before 1.2.0.
deb: build
	@version=$$(git describe --tags --match 'v*' 2>/dev/null | sed 's/^v//; s/-rc/~rc/'); \
	version=$${version:-$$(git log -1 --format=0.0.0~git%cd.%h --date=format:%Y%m%d%H%M%S)}; \
	for t in amd64:amd64 arm64:arm64 arm:armhf; do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$${t%:*} GOARM=6 $(GO) build -trimpath -ldflags='-s -w' -o bin/deb/watchword-$${t#*:} ./cmd/watchword || exit 1; \
	  COMPLETIONS_FROM=bin/watchword tools/deb.sh $${t#*:} bin/deb/watchword-$${t#*:} $$version bin/deb || exit 1; done

# What computes with numbers, where an int has 32 bits: packages whose tests need neither SQLite nor an outside program.
test-386:
	test "$$($(GO) env GOHOSTARCH)" != amd64 || CGO_ENABLED=0 GOARCH=386 $(GO) test ./api ./audit/... ./internal/... ./jose ./mqtt/packet ./sdk/verify ./token \
	  ./server/audit ./server/authn ./server/bus ./server/internal/... ./server/policy ./server/registry ./server/session ./server/twin

test: deps fmt deadcode
	$(GO) vet work
	bin/tools/staticcheck work
	$(GO) test ./server/bench
	cd tools && GOWORK=off $(GO) test ./mutate ./release
	cd peers && GOWORK=off $(GO) vet . && GOWORK=off ../bin/tools/staticcheck . && GOWORK=off $(GO) test .
	$(MAKE) test-386
	$(GO) test -run UnderASecond ./server
	WATCHWORD_OUTSIDE=required $(GO) test $(RACE) -timeout 30m work

# gofumpt, staticcheck, deadcode and benchstat in the versions of tools/go.mod, as programs: in a workspace "go tool" takes no
# go.mod of its own.
tools:
	@GOWORK=off $(GO) build -C tools -o ../bin/tools/ tool

fmt: tools
	@bad=$$(bin/tools/gofumpt -l .); test -z "$$bad" || { echo "not gofumpt'ed:"; echo "$$bad"; exit 1; }

# Functions that no program and no test reaches, other than those of tools/deadcode.txt: examples without output, which
# are compiled only. With the tag of the race detector, under which the order of locks is checked. Then what is declared and
# only tests use, other than what tools/unused.txt states.
deadcode: tools
	@GOWORK=off $(GO) build -C tools -o ../bin/tools/ ./unused && bin/tools/unused -except tools/unused.txt work
	@all=$$(bin/tools/deadcode -tags race -test -f '{{$$p := .Path}}{{range .Funcs}}{{$$p}}.{{.Name}}{{println}}{{end}}' work) || exit 1; \
	found=$$(printf '%s\n' "$$all" | grep -v '^$$' | grep -vxFf tools/deadcode.txt); \
	test -z "$$found" || { echo "not reached from any program or test; delete it, or state it in tools/deadcode.txt:"; echo "$$found"; exit 1; }

# The outside programs that tests use, from Debian's packages and npm, where they are missing; and libraries of others
# in a program and a module of their own (docs/decisions/0025-modules.md).
deps:
	@tools/install-outside.sh
	GOWORK=off $(GO) build -C peers -o ../bin/outside/peers .

lint:
	golangci-lint run ./... ./server/... ./cmd/...

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./jose ./server/policy ./token ./server/bench
	cd peers && GOWORK=off $(GO) test -run '^$$' -bench . -benchmem .
	$(GO) run ./server/bench/load
	$(GO) run ./server/bench/load -log 3 -rate 200 -seconds 8
	$(GO) run ./server/bench/auditload
	$(GO) run ./server/bench/mqttload
	$(GO) run ./server/bench/cut

fuzz:
	@for t in $$(grep -rhoE 'func (Fuzz[A-Za-z]+)' --include=*_test.go jose token mqtt sdk server cmd | awk '{print $$2}'); do \
	  p=$$(grep -rlE "func $$t\(" --include=*_test.go jose token mqtt sdk server cmd | head -1 | xargs dirname); \
	  $(GO) test -run '^$$' -fuzz "^$$t$$" -fuzztime $(FUZZ) ./$$p || exit 1; done

# MUTATE="-again" judges survivors anew, after tests were added; MUTATE="-report" prints what is known.
mutate:
	GOWORK=off $(GO) build -C tools -o ../bin/mutate ./mutate
	nice -n 19 bin/mutate $(MUTATE)

tidy:
	@tools/tidy.sh
	cd tools && GOWORK=off $(GO) mod tidy
	cd peers && GOWORK=off $(GO) mod tidy
