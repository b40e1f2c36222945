#!/usr/bin/env bash
# copy-of-system.sh SCRIPT RUNNER DIR CONSUL runs a script in a copy of this system, whose writes end with it.
# DIR is /packages there. RUNNER is "systemd", which boots a systemd with a Consul for it, or "chroot", which has none.
# It has to run in new namespaces, with which all of it ends: unshare --mount --propagation private --pid --fork
# --kill-child --mount-proc.
set -euo pipefail
script=$1 runner=$2 packages=$3 consul=$4

mount -t tmpfs usher-test /mnt
mkdir /mnt/{upper,work,root}
mount -t overlay usher-test -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
root=/mnt/root
rm -f $root/usr/sbin/policy-rc.d # where this system is a container, it starts and stops no service
rm -f $root/var/lib/man-db/auto-update # else each dpkg makes the index of all manual pages, for seconds
mkdir -p $root/packages
cp -r "$packages"/. $root/packages/
cat "${script%/*}/asserts.sh" "$script" >$root/packages/script.sh

case $runner in
systemd)
	cat >$root/etc/systemd/system/packages.service <<-'UNIT'
		[Unit]
		Requires=basic.target
		After=basic.target
		JobTimeoutSec=270
		JobTimeoutAction=poweroff-force
		SuccessAction=poweroff-force
		FailureAction=poweroff-force
		[Service]
		Type=oneshot
		ExecStart=/bin/bash /packages/script.sh
		TimeoutStartSec=240
		TimeoutStopSec=5
		StandardOutput=file:/packages/output
		StandardError=inherit
	UNIT
	mkdir -p /run/systemd/nspawn
	mount -t tmpfs usher-test /run/systemd/nspawn # another nspawn of a directory with this name has its files there
	systemd-nspawn --quiet --directory=$root --register=no --keep-unit --private-network --link-journal=no --settings=no \
		--console=pipe --bind-ro="$consul:/usr/bin/consul" --boot systemd.unit=packages.service systemd.log_target=journal >&2 </dev/null
	cat $root/packages/output || echo "systemd has not started the script"
	;;
chroot)
	mount --bind /dev $root/dev
	rm -f $root/usr/bin/systemctl $root/bin/systemctl
	unshare --net --pid --fork --kill-child --mount-proc=$root/proc chroot $root /bin/bash -c 'ip link set lo up; exec /bin/bash /packages/script.sh' 2>&1
	;;
esac

# What is left of the package, for scripts that remove it. systemd-analyze verify looks at manual pages, and man keeps them.
echo "== left"
cd /mnt/upper
find . \( -type f -o -type l -o -type d \) -path '*usher*' -not -path './packages/*' -not -path './var/cache/man/*'
for file in passwd group shadow gshadow; do
	cmp "/etc/$file" "$root/etc/$file" || true
done
