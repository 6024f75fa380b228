#!/usr/bin/env bash
# Runs a tidelog server beside an example's own server, until Ctrl-C. A tidelog that dies is started again: kill it as you like.
#
#   with-tidelog.sh TIDELOG PORT PROGRAM...    PORT is where the program serves its page
#
# The data of both, and the directory where PROGRAM runs, is a temporary one that is removed at the end.
set -euo pipefail

tidelog=$1 port=$2
shift 2
work=$(mktemp -d "${TMPDIR:-/tmp}/tidelog-example.XXXXXX")
keeper=

keep() {
    local server= ended
    trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null; wait "$server"; fi; exit 0' TERM
    while :; do
        "$tidelog" serve --data "$work/data" --set "cors.allow_origins=http://127.0.0.1:$port,http://localhost:$port" >"$work/log" 2>&1 </dev/null &
        server=$!
        echo "tidelog is process $server: kill -9 $server"
        ended=0
        wait "$server" 2>/dev/null || ended=$?
        server=
        echo "tidelog has ended ($ended), and is started again in 2 s: $(tail -n 1 "$work/log")"
        sleep 2
    done
}
end() {
    trap - EXIT
    if [ -n "$keeper" ]; then kill "$keeper" 2>/dev/null && wait "$keeper" || true; fi
    rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

keep &
keeper=$!
cd "$work"
"$@"
