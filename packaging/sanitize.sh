#!/bin/sh
# The tests over real sockets, those within src/ and some of the simulation (SEEDS=500) under the address sanitizer, which looks for leaks
# too: packaging/sanitize.sh [FILTER…]
#
# This house has no unsafe code of its own, so it is the libraries below it that are watched as they are used here: reads and writes
# of memory that is freed or not theirs, and what the server has not given back when it ends by itself (leaks). RocksDB is linked as
# it is; its memory comes from the sanitizer's allocator all the same.
#
# Every process writes what it finds to a file of its own, a server that is killed right after too: one such file is a failure.
set -eu
cd "$(dirname "$0")/.."
toolchain=${NIGHTLY:-nightly}

if ! cargo "+$toolchain" --version >/dev/null 2>&1; then
    echo "sanitizers need a nightly toolchain: rustup toolchain install nightly --profile minimal" >&2
    exit 1
fi
triple=$(rustc "+$toolchain" -vV | sed -n 's/^host: //p')

# RocksDB is not compiled again: the product's own is linked.
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
built() { ls -t "$target"/release/build/librocksdb-sys-*/out/librocksdb.a 2>/dev/null | head -n 1; }
[ -n "$(built)" ] || cargo build --release --locked
ROCKSDB_LIB_DIR=$(dirname "$(built)")
export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
export CARGO_TARGET_DIR="${SANITIZER_TARGET_DIR:-$target/sanitizer}"
# With --target the flags are for what runs, not for build scripts and macros.
export RUSTFLAGS="-Zsanitizer=address"
export ASAN_OPTIONS="detect_leaks=1:log_path=$work/found"

code=0
run() { cargo "+$toolchain" test --release --locked --target "$triple" --no-fail-fast "$@" || code=1; }
# The one looks at the program through a tracer, under which leaks cannot be looked for; the other bounds the server's memory, to which
# the sanitizer adds its own.
run --lib --bins --test it -- "$@" --skip every_ack_comes_after_an_fsync_that_began_after_its_request \
    --skip many_who_read_a_large_state_slowly_share_it_and_hold_up_nobody
# No order of its scenarios: they have neither sockets nor foreign code, and take minutes each here.
[ $# -gt 0 ] || SEEDS=${SEEDS:-500} run --test seam -- simulation::
for report in "$work"/found.*; do
    [ -e "$report" ] || continue
    code=1
    cat "$report" >&2
done
exit "$code"
