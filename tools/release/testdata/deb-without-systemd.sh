# Installs the deb where there is no systemd, runs what the unit runs as its user, and purges it.

# Without random bytes there are no empty keys.
printf '#!/bin/sh\nexit 1\n' >/usr/local/bin/od
chmod +x /usr/local/bin/od
! dpkg --install /packages/old.deb || fail "the installation goes on without random bytes"
[[ ! -e /etc/usher/report-key ]] || fail "there is a key without random bytes"
rm /usr/local/bin/od
dpkg --configure usher
want "the length of the key" "$(wc -c </etc/usher/report-key)" 64

command=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/usher.service)
set -a
. /etc/default/usher
set +a
# shellcheck disable=SC2086 # these are flags
setpriv --reuid usher --regid usher --init-groups ${command/\$USHER_FLAGS/$USHER_FLAGS} &
pid=$!
ready http://127.0.0.1:18001/healthz || fail "usher does not answer"
[[ $(ps -o user= -p $pid) == usher ]] || fail "it runs as $(ps -o user= -p $pid)"
kill $pid
wait $pid || fail "usher ended with status $?"
dpkg --purge usher

# A systemd that does not answer is no reason to fail.
mkdir -p /run/systemd/system
printf '#!/bin/sh\necho "$*" >>/packages/asked\nexit 1\n' >/usr/bin/systemctl
chmod +x /usr/bin/systemctl
dpkg --install /packages/old.deb
dpkg --force-confdef --force-confold --install /packages/new.deb
dpkg --purge usher
want "what systemd was asked for" "$(sort /packages/asked | uniq | xargs)" \
	"--no-reload disable usher.service daemon-reload stop usher.service try-restart usher.service"

# Debian's administrators forbid restarts and stops in policy-rc.d.
rm /packages/asked
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod +x /usr/sbin/policy-rc.d
dpkg --install /packages/old.deb
dpkg --purge usher
want "what systemd was asked for" "$(sort /packages/asked | uniq | xargs)" "--no-reload disable usher.service daemon-reload"
rm -r /usr/sbin/policy-rc.d /usr/bin/systemctl /run/systemd
echo "== done"
