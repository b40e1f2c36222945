#!/bin/sh
# After an installation or upgrade, deb and rpm. It does not start Usher: the administrator does, when it is set up.
set -e
case "$1" in
configure | [1-9]*) ;; # deb | rpm: how many versions are installed
*) exit 0 ;;
esac
for file in /etc/usher/report-key /etc/usher/state-key; do
	if [ ! -s "$file" ]; then
		key=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
		if [ ${#key} -ne 64 ]; then
			echo "usher: there is no $file, because od gave no random bytes from /dev/urandom" >&2
			exit 1
		fi
		(umask 027 && printf %s "$key" >"$file.new")
		chgrp usher "$file.new"
		mv "$file.new" "$file"
	fi
done
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || echo "usher: systemctl daemon-reload failed" >&2
	# If it runs, it runs the new version from here on. Envoys keep what they have until they are connected again.
	# On Debian, the administrator may forbid this in policy-rc.d.
	systemctl=$(command -v deb-systemd-invoke || echo systemctl)
	$systemctl try-restart usher.service || echo "usher: the new version runs after systemctl restart usher, which failed here" >&2
fi
