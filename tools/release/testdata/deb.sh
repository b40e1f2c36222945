# Installs, starts, upgrades, removes and purges the deb, as an administrator does, on a systemd.
set -eu
fail() { echo "FAIL: $*"; systemctl status --no-pager usher 2>&1 | tail -n 20; exit 1; }
want() { [[ $2 == "$3" ]] || fail "$1: got '$2', want '$3'"; }
old=/packages/old.deb new=/packages/new.deb
export DEBIAN_FRONTEND=noninteractive

ready() { curl --silent --show-error --fail --retry 60 --retry-delay 1 --retry-all-errors --max-time 5 "$1" -o /dev/null; }
answers() { ready http://127.0.0.1:18001/readyz || fail "usher is not ready: $(curl -s http://127.0.0.1:18001/readyz)"; }

systemd-run --quiet --unit=consul consul agent -dev -bind 127.0.0.1
ready http://127.0.0.1:8500/v1/operator/raft/configuration || fail "consul does not answer"

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
before=$(systemctl show -P MainPID usher)

# The new version has another default config file. With a terminal, dpkg asks.
dpkg --force-confdef --force-confold --install $new
[[ $(usher version) == "usher v0.2.0 ("* ]] || fail "usher version after the upgrade: $(usher version)"
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
