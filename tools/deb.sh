#!/usr/bin/env bash
# usage: tools/deb.sh ARCH BINARY VERSION OUT   (ARCH: amd64, arm64, armhf)
# Packs a binary with the units, the configuration and the shell completions into OUT/watchword_VERSION_ARCH.deb. The same input gives
# the same bytes: all times are SOURCE_DATE_EPOCH, by default that of the commit. DEB_COMPRESS are options of dpkg-deb.
# COMPLETIONS_FROM is a binary for this machine; by default BINARY.
set -euo pipefail
[ $# = 4 ] || { sed -n 2p "$0" >&2; exit 2; }
arch=$1 binary=$2 version=$3 out=$4
cd "$(dirname "$0")/.."
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dir=$work/root host=$work/watchword
mkdir "$dir"
ln -s "$(realpath "${COMPLETIONS_FROM:-$binary}")" "$host" # under the name that the completions are for
put() { install -D -m "$1" "$2" "$dir/$3"; }
put 755 "$binary" usr/bin/watchword
for unit in watchword watchword-agent; do put 644 "deploy/systemd/$unit.service" "usr/lib/systemd/system/$unit.service"; done
put 644 deploy/systemd/watchword.sysusers usr/lib/sysusers.d/watchword.conf
put 644 deploy/systemd/watchword.tmpfiles usr/lib/tmpfiles.d/watchword.conf
put 644 deploy/systemd/watchword.logrotate etc/logrotate.d/watchword
put 644 deploy/deb/watchword.toml etc/watchword/watchword.toml
put 644 deploy/deb/functions.toml etc/watchword/functions.toml
put 644 LICENSE usr/share/doc/watchword/copyright
put 644 CHANGELOG.md usr/share/doc/watchword/changelog
gzip -9n "$dir/usr/share/doc/watchword/changelog"

for shell in bash:share/bash-completion/completions/watchword zsh:share/zsh/vendor-completions/_watchword fish:share/fish/vendor_completions.d/watchword.fish; do
  install -D -m 644 /dev/null "$dir/usr/${shell#*:}"
  "$host" completion "${shell%%:*}" >"$dir/usr/${shell#*:}"
done
for script in postinst prerm postrm; do put 755 "deploy/deb/$script" "DEBIAN/$script"; done
put 644 deploy/deb/conffiles DEBIAN/conffiles
cat >"$dir/DEBIAN/control" <<CONTROL
Package: watchword
Version: $version
Architecture: $arch
Maintainer: The Watchword authors <watchword@users.noreply.github.com>
Installed-Size: $(find "$dir" -path "$dir/DEBIAN" -prune -o -type f -printf '%s\n' | awk '{n += int(($1 + 1023) / 1024)} END {print n}')
Depends: systemd | adduser
Recommends: ca-certificates
Section: net
Priority: optional
Homepage: https://github.com/watchword-iot/watchword
Description: identity and control for IoT devices
 The server, the command line tool for operators and the agent of a device, in
 one program: tokens (JWT), MQTT, signed commands and a verifiable audit log.
CONTROL
chmod 644 "$dir/DEBIAN/control"
(cd "$dir" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
mkdir -p "$out"
# shellcheck disable=SC2086 # DEB_COMPRESS are options
dpkg-deb --root-owner-group ${DEB_COMPRESS:--Zxz} --build "$dir" "$out/watchword_${version}_$arch.deb"
