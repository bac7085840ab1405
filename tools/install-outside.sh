#!/usr/bin/env bash
# Installs the outside programs that tests use, where they are missing: curl, jq, openssl, node with npm's jose.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=()
for pair in curl:curl jq:jq openssl:openssl node:nodejs npm:npm gcc:gcc; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if ((${#missing[@]})); then
  echo "installing: ${missing[*]}" >&2
  as_root=; [ "$(id -u)" = 0 ] || as_root=sudo
  $as_root apt-get update -qq
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
fi
(cd attack/npm && [ -d node_modules/jose ] || npm ci --silent --no-audit --no-fund)
