#!/bin/sh
# Before the package is removed. An upgrade (rpm: 1 version stays) leaves the service as it is.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl stop usher.service
fi
if command -v systemctl >/dev/null; then
	systemctl --no-reload disable usher.service >/dev/null 2>&1 || true
fi
