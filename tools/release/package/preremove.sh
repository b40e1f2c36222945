#!/bin/sh
# Before the package is removed. An upgrade (rpm: a version stays) leaves the service as it is.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl=$(command -v deb-systemd-invoke || echo systemctl)
	$systemctl stop usher.service || echo "usher: systemctl stop usher failed" >&2
fi
if command -v systemctl >/dev/null; then
	systemctl --no-reload disable usher.service >/dev/null 2>&1 || true
fi
