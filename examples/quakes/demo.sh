#!/usr/bin/env bash
# Runs the server, the feeder and the page until Ctrl-C; Enter kills the server, and Enter again starts it again.
#
#   demo.sh TIDELOG QUAKES       the two programs, as `make demo` built them
#
# LISTEN, PAGE   other addresses than 127.0.0.1:4242 and 127.0.0.1:4243
# SPEED          seconds of the week in one second (3600)
# DATA           a data directory to keep; without it, one that is removed at the end
set -euo pipefail

tidelog=$1 feeder=$2
listen=${LISTEN:-127.0.0.1:4242} page=${PAGE:-127.0.0.1:4243} speed=${SPEED:-3600}
work=$(mktemp -d "${TMPDIR:-/tmp}/tidelog-demo.XXXXXX")
data=${DATA:-$work/data}
origins="http://$page,http://localhost:${page##*:}"
serve=("$tidelog" serve --listen "$listen" --data "$data" --set "cors.allow_origins=$origins")
server= feeding=

# On a terminal the feeder's progress bar may stand where we write.
say() { if [ -t 1 ]; then printf '\r\033[K'; fi; printf '%s\n' "$1"; }
alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

end() {
    trap - EXIT
    local pid
    for pid in $feeding $server; do kill "$pid" 2>/dev/null || true; done
    for pid in $feeding $server; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

start_server() {
    : >"$work/server.log"
    "${serve[@]}" >>"$work/server.log" 2>&1 </dev/null &
    server=$!
    for ((i = 0; i < 600; i++)); do # a minute: after a kill the log is recovered first
        if grep -q '^listening on ' "$work/server.log"; then return; fi
        if ! alive "$server"; then break; fi
        sleep 0.1
    done
    echo "the server did not start:" >&2
    cat "$work/server.log" >&2
    return 1
}

start_server || exit 1
"$feeder" --server "http://$listen" --page "$page" --speed "$speed" </dev/null &
feeding=$!
printf -v by_hand '%q ' "${serve[@]}"
cat <<TEXT

  Look at   http://$page/
  and at    curl -N 'http://$listen/events?topic=quakes.**&from=-5'

  Enter     kills the server (kill -9, process $server); Enter again starts it again.
            Or kill it yourself, and start it again with
              $by_hand
  Ctrl-C    ends everything.

TEXT

while read -r _; do
    if alive "$server"; then
        kill -9 "$server"
        wait "$server" 2>/dev/null || true
        say "the server is dead; Enter starts it again"
    elif start_server; then
        say "the server is back (process $server); Enter kills it"
    fi
done
# No terminal to read from: stay for as long as the page does.
wait "$feeding"
