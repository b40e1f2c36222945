# The beginning of each script: how it fails, and what it waits for.
set -eu
fail() {
	echo "FAIL: $*"
	[[ ! -d /run/systemd/system ]] || systemctl status --no-pager usher 2>&1 | tail -n 20
	exit 1
}
want() { [[ $2 == "$3" ]] || fail "$1: got '$2', want '$3'"; }
ready() {
	local end=$((SECONDS + 60))
	until curl --silent --fail --max-time 5 "$1" -o /dev/null; do
		((SECONDS < end)) || return 1
		sleep 0.05 # curl's retries are a second apart
	done
}
answers() { ready http://127.0.0.1:18001/readyz || fail "usher is not ready: $(curl -s http://127.0.0.1:18001/readyz)"; }
start_consul() {
	systemd-run --quiet --unit=consul consul agent -dev -bind 127.0.0.1
	ready http://127.0.0.1:8500/v1/operator/raft/configuration || fail "consul does not answer"
}
