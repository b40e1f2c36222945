# Installs the archive with the commands of docs/install.md, and compares what is there with what the deb installs.
installed() {
	stat -c '%n %U:%G %a' /usr/bin/usher /etc/usher /etc/usher/* /etc/default/usher /var/lib/usher
	sha256sum /usr/bin/usher /usr/share/usher/usher-policy.hcl /etc/usher/usher.hcl /etc/default/usher "$1"/usher.service | sed "s|$1|UNITS|"
	getent passwd usher | cut -d: -f 1,2,6,7
	id -Gn usher
}
ln -s /bin/true /usr/bin/systemctl # the test under systemd is that of the deb
cd /packages
/bin/bash -eu /packages/commands
installed /etc/systemd/system >by-hand
userdel usher
rm -r /usr/bin/usher /usr/share/usher /etc/usher /etc/default/usher /var/lib/usher /etc/systemd/system/usher.service
dpkg --install /packages/old.deb
installed /usr/lib/systemd/system >by-deb
diff by-hand by-deb || fail "the archive (<) and the deb (>) differ"
dpkg --purge usher
echo "== done"
