# Installs, starts, upgrades and removes the rpm on a systemd, with the rpm of Debian, whose packages it does not know.
rpm() { command rpm --dbpath /packages/rpmdb --nodeps "$@"; }
query() { command rpm --dbpath /packages/rpmdb -q "$@"; }

for script in 'preinstall scriptlet' 'postinstall scriptlet' 'preuninstall scriptlet' 'postuninstall scriptlet'; do
	query -p --scripts /packages/old.rpm | grep -q "^$script" || fail "there is no $script"
done
query -p --requires /packages/old.rpm | grep -qx /usr/sbin/useradd || fail "it does not require useradd"
want "the config files" "$(query -p --configfiles /packages/old.rpm | xargs)" "/etc/default/usher /etc/usher/usher.hcl"

rpm --install /packages/old.rpm
want "the config directory" "$(stat -c '%U:%G %a' /etc/usher)" "root:usher 750"
want "the config file" "$(stat -c '%U:%G %a' /etc/usher/usher.hcl)" "root:usher 640"
want "the report key" "$(stat -c '%U:%G %a' /etc/usher/report-key)" "root:usher 640"
want "the state directory" "$(stat -c '%U:%G %a' /var/lib/usher)" "usher:usher 700"
[[ $(usher version) == "usher v0.1.0 ("* ]] || fail "usher version: $(usher version)"
want "differences from the package" "$(query --verify --nodeps usher || true)" ""
echo '# set by the administrator' >>/etc/usher/usher.hcl
cp -a /etc/usher /packages/etc-usher

start_consul
want "started by the installation" "$(systemctl is-active usher || true)" inactive
systemctl enable --now usher
answers
before=$(systemctl show -P MainPID usher)

rpm --upgrade /packages/new.rpm
[[ $(usher version) == "usher v0.2.0-rc1 ("* ]] || fail "usher version after the upgrade: $(usher version)"
cmp /etc/usher/usher.hcl /packages/etc-usher/usher.hcl || fail "the upgrade changed usher.hcl"
cmp /etc/usher/report-key /packages/etc-usher/report-key || fail "the upgrade changed the key"
want "running after the upgrade" "$(systemctl is-active usher || true)" active
want "enabled after the upgrade" "$(systemctl is-enabled usher || true)" enabled
[[ $(systemctl show -P MainPID usher) != "$before" ]] || fail "the upgrade did not restart usher"
answers

rpm --erase usher
want "running after the removal" "$(systemctl is-active usher || true)" inactive
[[ ! -e /etc/systemd/system/multi-user.target.wants/usher.service ]] || fail "enabled after the removal"
for file in /usr/bin/usher /usr/lib/systemd/system/usher.service /etc/default/usher /usr/share/man/man1/usher.1.gz; do
	[[ ! -e $file ]] || fail "$file is left"
done
cmp /etc/usher/usher.hcl.rpmsave /packages/etc-usher/usher.hcl || fail "the removal has removed the administrator's settings"
echo "== done"
