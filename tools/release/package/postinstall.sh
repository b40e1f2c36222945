#!/bin/sh
# After an installation or upgrade, deb and rpm. It does not start Usher: the administrator does, when it is set up.
set -e
for key in /etc/usher/report-key /etc/usher/state-key; do
	if [ ! -e "$key" ]; then
		(umask 027 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$key.new")
		chgrp usher "$key.new"
		mv "$key.new" "$key"
	fi
done
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# If it runs, it runs the new version from here on. Envoys keep what they have until they are connected again.
	systemctl try-restart usher.service || true
fi
