#!/usr/bin/env bash
# usage: make.sh WATCHWORD OUT.tar.gz
# Makes a data folder with one of everything that a server keeps, by a build of watchword (a path),
# and packs it with the folders of two devices. The tests of server/ migrate what it packs: see
# upgrade_test.go, which says what must be there afterwards. README.md beside this file names the
# commit of every archive. Needs mosquitto-clients, curl and jq.
# It listens on loopback ports 28443 and 28883, takes about 20 seconds, and leaves nothing else behind.
set -euo pipefail
ww=$(realpath "$1") out=$(realpath -m "$2")
top=$(mktemp -d); cd "$top"
trap 'kill -9 $(jobs -p) 2>/dev/null || true; rm -rf "$top"' EXIT
export WATCHWORD_DATA=$top/data

cat >conf.toml <<'C'
[server]
https = "localhost:28443"
mqtts = "localhost:28883"
[metrics]
listen = ""
C
"$ww" serve --config conf.toml 2>server.log &
server=$!
for _ in $(seq 100); do curl -fs --cacert data/tls/ca.pem https://localhost:28443/healthz >/dev/null 2>&1 && break; sleep 0.1; done

cat >lamps.toml <<'C'
for = { kind = "lamp" }

[[allow]]
publish = ["sites/+/#"]
subscribe = ["sites/+/#", "devices/+/events/#"]

[[allow]]
call = ["lamp.set"]
on   = { kind = "lamp" }
args = { level = { maximum = 80 } }
C
printf 'for = {}\n[[allow]]\nget = ["/v1/events"]\n' >gone.toml
"$ww" policy apply lamps.toml
sed -i 's/80/70/' lamps.toml
"$ww" policy apply lamps.toml # version 2
"$ww" policy apply gone.toml
"$ww" policy delete gone --yes

enroll() { # ID [flags of agent enroll]
  "$ww" device create "$1" -l kind=lamp -l site=a >link
  "$ww" agent enroll link --dir "$@"
}
enroll lamp-1
enroll lamp-2 --sign Ed25519 --seal X25519
enroll lamp-3
enroll lamp-4
"$ww" device create lamp-5 -l kind=lamp >link # new: nobody redeems its link
enroll lamp-6
enroll lamp-7
"$ww" agent rekey --dir lamp-7
"$ww" device require-proof lamp-7 yes

# as DEVICE: sets flags to those of a mosquitto client that connects as that device.
as() {
  flags=(-V mqttv5 -h localhost -p 28883 --cafile data/tls/ca.pem -u "$1" -P "$("$ww" agent token --dir "$1")" -q 1)
}
# A persistent session that a client leaves behind, with a will that is delayed by an hour.
as lamp-1
mosquitto_sub "${flags[@]}" -i lamp-1/panel -c -x 604800 -t 'sites/a/#' -t '$share/panels/sites/b/#' -t devices/lamp-2/events/power \
  --will-topic sites/a/panel --will-payload lost --will-qos 1 --will-retain -D will will-delay-interval 3600 -d >panel.log &
panel=$!
for _ in $(seq 100); do grep -q SUBACK panel.log && break; sleep 0.1; done
kill -9 $panel; wait $panel || true
as lamp-2
mosquitto_pub "${flags[@]}" -i lamp-2/tool -t devices/lamp-2/events/power -m '{"w":3}' -r # retained, and waits for the panel
mosquitto_pub "${flags[@]}" -i lamp-2/tool -t sites/a/scene -m evening -r -D publish user-property made before
mosquitto_pub "${flags[@]}" -i lamp-2/tool -t sites/a/note -m first
mosquitto_pub "${flags[@]}" -i lamp-2/tool -t sites/b/note -m shared
as lamp-4
mosquitto_pub "${flags[@]}" -i lamp-4 -t sites/a/from-4 -m 4 -r # by one that is revoked below

"$ww" twin set lamp-1 every:=5

# Commands in every state that lasts.
printf '{"type":"object","properties":{"level":{"type":"integer"}},"required":["level"]}' >level.json
cat >functions.toml <<'C'
[functions."lamp.set"]
run = ["cat"]
schema = "level.json"
[functions."lamp.fail"]
run = ["false"]
C
"$ww" agent run --dir lamp-1 --functions functions.toml 2>agent.log &
agent=$!
"$ww" command send lamp-1 lamp.set level:=40 --wait 20s                  # done
"$ww" command send lamp-1 lamp.fail --wait 20s || true                   # failed
kill $agent; wait $agent || true
"$ww" command send lamp-1 lamp.set level:=50 --ttl 24h                   # queued
"$ww" command cancel "$("$ww" command send lamp-2 lamp.set level:=1)"    # cancelled
"$ww" command send lamp-2 lamp.set level:=2 --ttl 1s                     # expired
sleep 2
poll() { curl -fs --cacert data/tls/ca.pem -H "Authorization: Bearer $("$ww" agent token --dir lamp-2)" "https://localhost:28443/v1/self/commands?limit=1$1"; }
"$ww" command send lamp-2 lamp.set level:=3 --ttl 2s
poll "" >/dev/null
poll "&epoch=1&after=3" >/dev/null                                       # delivered, then unknown
sleep 3
"$ww" command send lamp-2 lamp.set level:=4 --ttl 24h
poll "" >/dev/null
poll "&epoch=1&after=4" >/dev/null                                       # delivered
"$ww" command send lamp-2 lamp.set level:=5 --ttl 24h
poll "&epoch=1&after=4" >/dev/null                                       # sent
"$ww" command send lamp-2 lamp.set level:=6 --ttl 24h                    # queued

# People and back ends: an admin with two keys, one of them on another machine; a viewer who never logged in; one who is revoked;
# an operator whose role is a policy; a service with a label.
printf 'role = "installer"\nmay_give = ["topic:sites/a/#"]\n[[allow]]\nget = ["/v1/devices/#"]\n' >installer.toml
"$ww" policy apply installer.toml
login() ( # NAME MACHINE: redeems the link in the file link on a machine of its own
  export HOME=$top/homes/$1-$2; unset WATCHWORD_DATA; mkdir -p "$HOME"
  "$ww" login "$top/link" --context hub
  "$ww" device list >/dev/null
)
"$ww" operator invite alice --role admin >link
login alice laptop
"$ww" operator link alice >link
login alice desktop
"$ww" operator invite vera --role viewer >link
"$ww" operator invite rob --role operator >link
login rob laptop
"$ww" operator invite ines --role installer >link
login ines tablet
"$ww" operator revoke rob --reason left --yes
"$ww" service create billing -l site=a >link
"$ww" service enroll link --dir billing
"$ww" operator list
"$ww" service list

"$ww" device suspend lamp-3 --reason 'on the bench'
"$ww" device revoke lamp-4 --reason stolen --yes
"$ww" device delete lamp-6 --yes
"$ww" command list
"$ww" device list
"$ww" session list

date +%s >made
kill $server; wait $server || true
rm -rf data/LOCK lamp-*/LOCK data/server.json homes/*/.cache # made again at start
tar --sort=name --owner=0 --group=0 --numeric-owner -czf "$out" made data lamp-1 lamp-2 homes billing
