#!/bin/sh
# Before the files of the package, deb and rpm: the user who owns some of them.
set -e
getent group usher >/dev/null || groupadd --system usher
getent passwd usher >/dev/null ||
	useradd --system --gid usher --home-dir /var/lib/usher --no-create-home --shell /usr/sbin/nologin --comment Usher usher
