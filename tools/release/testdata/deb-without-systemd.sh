# Installs the deb where there is no systemd, runs what the unit runs as its user, and purges it.
set -eu
fail() { echo "FAIL: $*"; exit 1; }
dpkg --install /packages/old.deb
command=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/usher.service)
set -a
. /etc/default/usher
set +a
# shellcheck disable=SC2086 # these are flags
setpriv --reuid usher --regid usher --init-groups ${command/\$USHER_FLAGS/$USHER_FLAGS} &
pid=$!
curl --silent --show-error --fail --retry 60 --retry-delay 1 --retry-all-errors --max-time 5 http://127.0.0.1:18001/healthz || fail "usher does not answer"
[[ $(ps -o user= -p $pid) == usher ]] || fail "it runs as $(ps -o user= -p $pid)"
kill $pid
wait $pid || fail "usher ended with status $?"
dpkg --purge usher
echo "== done"
