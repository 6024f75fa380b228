#!/usr/bin/env bash
# Installs the servers that `make bench` compares with: the Durable Streams server, and nginx with nchan.
# Does nothing when both are there. Ends with 0 only when both are there afterwards; otherwise it says what is missing.
set -euo pipefail

home=${XDG_CACHE_HOME:-$HOME/.cache}/tidelog/peers
module=/usr/lib/nginx/modules/ngx_nchan_module.so
# What the figures were compared with: another version is another comparison.
durable_streams=0.1.5

if [ ! -x "$home/bin/durable-streams-server" ]; then
    echo "building durable-streams $durable_streams into $home"
    # It must not mix with the crate here, whose profile and flags are its own.
    (cd / && CARGO_TARGET_DIR="$home/target" cargo install --locked --version "$durable_streams" --root "$home" durable-streams)
    rm -rf "$home/target"
fi

if ! { command -v nginx >/dev/null 2>&1 && [ -e "$module" ]; }; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "nginx with its module nchan is missing, and there is no apt-get here: please install both ($module)." >&2
        exit 1
    fi
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends nginx-core libnginx-mod-nchan ||
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends nginx libnginx-mod-nchan
fi

if ! { command -v nginx >/dev/null 2>&1 && [ -e "$module" ]; }; then
    echo "nginx with its module nchan is still missing." >&2
    exit 1
fi
