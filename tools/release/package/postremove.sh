#!/bin/sh
# After the package is removed. "purge" (deb only) removes what else is Usher's: settings, keys, state and user.
set -e
if [ "$1" = purge ]; then
	rm -rf /etc/usher /var/lib/usher
	if getent passwd usher >/dev/null; then
		userdel usher || echo "usher: the user usher stays, because userdel failed" >&2
	fi
	if getent group usher >/dev/null; then
		groupdel usher || echo "usher: the group usher stays, because groupdel failed" >&2
	fi
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || echo "usher: systemctl daemon-reload failed" >&2
fi
