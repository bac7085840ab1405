#!/usr/bin/env bash
# Installs the outside programs that tests use, where they are missing: curl, jq, openssl,
# mosquitto and its clients, nginx and HAProxy, node with npm's jose, mqtt and openid-client, Python with paho-mqtt and PyJWT; litewitness, fsck and pebble;
# what checks units and packages (systemd is not started).
set -euo pipefail
cd "$(dirname "$0")/.."
missing=()
export PATH="$PATH:/usr/sbin"
for pair in curl:curl jq:jq openssl:openssl mosquitto:mosquitto mosquitto_pub:mosquitto-clients node:nodejs npm:npm gcc:gcc nginx:nginx-light haproxy:haproxy \
  systemd-analyze:systemd systemd-sysusers:systemd systemd-tmpfiles:systemd dpkg-deb:dpkg pgrep:procps; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing+=(libnginx-mod-stream)
if ((${#missing[@]})); then
  echo "installing: ${missing[*]}" >&2
  as_root=; [ "$(id -u)" = 0 ] || as_root=sudo
  $as_root apt-get update -qq
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
fi
# What package-lock.json names, unless this very one was installed already.
(cd server/attack/npm && cmp -s package-lock.json node_modules/.installed || { npm ci --silent --no-audit --no-fund && cp package-lock.json node_modules/.installed; })
# What docs/backends.md installs with pip, in an environment of its own.
python=$PWD/bin/outside/python
if ! cmp -s tools/python-requirements.txt "$python/.installed"; then
  rm -rf "$python"
  python3 -m venv "$python"
  "$python/bin/pip" install --quiet --disable-pip-version-check -r tools/python-requirements.txt
  cp tools/python-requirements.txt "$python/.installed"
fi
# A witness and a checker of transparency logs, and an ACME CA for tests, all of others' making.
out=$PWD/bin/outside
want="litewitness v0.6.1, fsck v1.0.2, pebble v2.10.3"
if [ "$(cat "$out/.installed" 2>/dev/null)" != "$want" ]; then
  GOBIN=$out GOWORK=off GOFLAGS=-mod=mod go install filippo.io/torchwood/cmd/litewitness@v0.6.1
  GOBIN=$out GOWORK=off GOFLAGS=-mod=mod go install github.com/transparency-dev/tessera/cmd/fsck@v1.0.2
  mv "$out/fsck" "$out/tlog-fsck" # the other fsck is for disks
  GOBIN=$out GOWORK=off GOFLAGS=-mod=mod go install github.com/letsencrypt/pebble/v2/cmd/pebble@v2.10.3
  echo "$want" >"$out/.installed"
fi
# Prometheus's checker of rules and metrics. The package is unpacked and not installed, since that would start a server.
if [ ! -x "$out/promtool" ]; then
  unpacked=$(mktemp -d)
  (cd "$unpacked" && apt-get download -qq prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool && mv usr/bin/promtool "$out/promtool")
  rm -rf "$unpacked"
fi
