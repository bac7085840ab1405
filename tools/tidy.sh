#!/usr/bin/env bash
# go mod tidy for each module of the product. What they require of each other may not be released yet: while it runs, the
# go.mod files name the folders instead.
set -euo pipefail
cd "$(dirname "$0")/.."
export GOWORK=off
product=github.com/watchword-iot/watchword
trap 'for d in server cmd; do go mod edit -dropreplace=$product -dropreplace=$product/server $d/go.mod; done' EXIT
go mod tidy
go mod edit -replace=$product=.. server/go.mod
go -C server mod tidy
go mod edit -replace=$product=.. -replace=$product/server=../server cmd/go.mod
go -C cmd mod tidy
