# Boots a machine: DIR ROOT NAME [FILE PATH]...
#
# It is process 1 of its namespaces. ROOT is the machine's file system, which stays as it is: what is written is in memory.
# Each FILE is at PATH on the machine. systemd gets what it wants of a container:
# https://systemd.io/CONTAINER_INTERFACE/
dir=$1 lower=$2 name=$3
shift 3
root=$dir/root

mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$root"
mount -t overlay -o "lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work" overlay "$root"
echo "$name" >"$root/etc/hostname"
echo "127.0.0.1 localhost $name" >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
while [ $# -gt 0 ]; do
	mkdir -p "$(dirname "$root$2")"
	touch "$root$2"
	mount --bind "$1" "$root$2"
	shift 2
done

mount -t proc proc "$root/proc"
# Settings of the network are the machine's own, and the others are those of the machine that runs the test.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
	touch "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
rmdir /old
exec env -i container=usher-e2e PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --log-target=journal --show-status=no
