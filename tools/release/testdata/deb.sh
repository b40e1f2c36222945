# Installs, starts, upgrades, removes and purges the deb, as an administrator does, on a systemd.
old=/packages/old.deb new=/packages/new.deb
export DEBIAN_FRONTEND=noninteractive
start_consul

dpkg --install $old
want "started by the installation" "$(systemctl is-active usher || true)" inactive
want "enabled by the installation" "$(systemctl is-enabled usher || true)" disabled
want "the config directory" "$(stat -c '%U:%G %a' /etc/usher)" "root:usher 750"
want "the config file" "$(stat -c '%U:%G %a' /etc/usher/usher.hcl)" "root:usher 640"
want "the report key" "$(stat -c '%U:%G %a' /etc/usher/report-key)" "root:usher 640"
want "the state key" "$(stat -c '%U:%G %a' /etc/usher/state-key)" "root:usher 640"
want "the state directory" "$(stat -c '%U:%G %a' /var/lib/usher)" "usher:usher 700"
want "the config file" "$(usher validate /etc/usher/usher.hcl)" "1 checked, no problems"
[[ $(usher version) == "usher v0.1.0 ("* ]] || fail "usher version: $(usher version)"
[[ -e /usr/share/man/man1/usher-serve.1.gz ]] || fail "there is no usher-serve(1)"

systemd-analyze verify usher.service || fail "systemd-analyze verify"
# 2.0 of 10, in its unit
systemd-analyze security --no-pager --threshold=20 usher.service >/packages/security || fail "$(tail -n 1 /packages/security)"
tail -n 1 /packages/security

systemctl enable --now usher
answers
want "the user" "$(ps -o user= -p "$(systemctl show -P MainPID usher)")" usher
want "warnings of the start" "$(journalctl -u usher --no-pager | grep -c 'level=\(WARN\|ERROR\).*\(key\|state\|permission\|denied\)' || true)" 0
echo '# set by the administrator' >>/etc/usher/usher.hcl
systemctl reload usher || fail "systemctl reload"
sed -i 's/^CONSUL_HTTP_ADDR=.*/CONSUL_HTTP_ADDR=localhost:8500/' /etc/default/usher
cp -a /etc/usher /packages/etc-usher

# The unit has lines for flags that need more: a socket for all users of the machine, another state directory, a low port.
mkdir -p /etc/systemd/system/usher.service.d
(echo '[Service]' && sed -n 's/^#\([A-Z][A-Za-z]*=\)/\1/p' /usr/lib/systemd/system/usher.service) >/etc/systemd/system/usher.service.d/more.conf
want "the lines of the unit" "$(wc -l </etc/systemd/system/usher.service.d/more.conf)" 7
install -d -o usher -g usher -m 700 /srv/usher
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=usher.test -addext subjectAltName=DNS:usher.test \
	-keyout /packages/key -out /packages/cert 2>/dev/null
install -m 640 -g usher /packages/key /packages/cert /etc/usher
cp -a /etc/default/usher /packages/default
more="--xds-addr unix:///run/usher/xds.sock --dataplane-addr 127.0.0.1:443 --tls-cert /etc/usher/cert --tls-key /etc/usher/key --drain-time 10m"
sed -i "/^USHER_FLAGS=/{s|/var/lib/usher|/srv/usher|;s|\"\$| $more&|}" /etc/default/usher
systemctl daemon-reload
systemctl restart usher
answers
[[ -n $(ls -A /srv/usher) ]] || fail "there is no state in /srv/usher"
for where in "--unix-socket /run/usher/xds.sock" "--connect-to usher.test:443:127.0.0.1:443"; do
	# gRPC refuses a GET. That it answers is enough.
	# shellcheck disable=SC2086 # these are flags
	got=$(setpriv --reuid nobody --regid nogroup --clear-groups \
		curl --silent --show-error --http2 --cacert /packages/cert --max-time 10 -o /dev/null -w '%{http_code}' $where https://usher.test || true)
	[[ $got == 4* ]] || fail "with $where, a user of the machine gets '$got'"
done
rm -r /etc/systemd/system/usher.service.d /etc/usher/key /etc/usher/cert /srv/usher
cp -a /packages/default /etc/default/usher
systemctl daemon-reload
systemctl restart usher
answers
before=$(systemctl show -P MainPID usher)

# The new version has another default config file. With a terminal, dpkg asks.
dpkg --force-confdef --force-confold --install $new
[[ $(usher version) == "usher v0.2.0-rc1 ("* ]] || fail "usher version after the upgrade: $(usher version)"
[[ $(systemctl show -P MainPID usher) != "$before" ]] || fail "the upgrade did not restart usher"
answers
for file in usher.hcl report-key state-key; do
	cmp /etc/usher/$file /packages/etc-usher/$file || fail "the upgrade changed $file"
done
want "the config directory" "$(stat -c '%U:%G %a' /etc/usher)" "root:usher 750"
grep -q '^CONSUL_HTTP_ADDR=localhost:8500$' /etc/default/usher || fail "the upgrade changed /etc/default/usher"

dpkg --remove usher
want "running after the removal" "$(systemctl is-active usher || true)" inactive
[[ ! -e /etc/systemd/system/multi-user.target.wants/usher.service ]] || fail "enabled after the removal"
[[ -n $(ls /var/lib/usher) ]] || fail "the removal has removed the state"
cmp /etc/usher/usher.hcl /packages/etc-usher/usher.hcl || fail "the removal changed usher.hcl"

dpkg --force-confdef --force-confold --install $new
cmp /etc/usher/usher.hcl /packages/etc-usher/usher.hcl || fail "the second installation changed usher.hcl"
systemctl start usher
answers

dpkg --purge usher
want "running after the purge" "$(systemctl is-active usher || true)" inactive
echo "== done"
