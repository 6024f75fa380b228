#!/bin/sh
# Tests of src/ in miri, an interpreter that notices undefined behaviour, races on memory and leaks: packaging/miri.sh [FILTER…]
#
# This house has no unsafe code of its own, so it is the libraries that are watched as they are used here: buffers, slabs,
# locks. It reaches what touches neither RocksDB (a foreign library) nor a socket or the file system's size, and it is very slow: property
# tests have two cases each (PROPTEST_CASES), and what takes half a minute and more even so is left out below.
set -eu
cd "$(dirname "$0")/.."
toolchain=${NIGHTLY:-nightly}

if ! cargo "+$toolchain" miri --version >/dev/null 2>&1; then
    echo "miri comes with a nightly toolchain: rustup toolchain install nightly --profile minimal --component miri,rust-src" >&2
    exit 1
fi

# RocksDB is named so that it is not compiled; nothing of it is run.
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
built() { ls -t "$target"/release/build/librocksdb-sys-*/out/librocksdb.a 2>/dev/null | head -n 1; }
[ -n "$(built)" ] || cargo build --release --locked
ROCKSDB_LIB_DIR=$(dirname "$(built)")
export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
export CARGO_TARGET_DIR="${MIRI_TARGET_DIR:-$target/miri}"

# The clock is the machine's, and files are its files.
export MIRIFLAGS="-Zmiri-disable-isolation ${MIRIFLAGS:-}"
export PROPTEST_CASES="${PROPTEST_CASES:-2}" PROPTEST_DISABLE_FAILURE_PERSISTENCE=1

if [ $# -eq 0 ]; then
    set -- event::tests topic::tests record::tests sse:: hub:: sequencer::tests subscription::shared server::plain::head \
        http::accept http::query http::route http::terms config::value client::items
    # Two threads that race 20,000 times: tests/threads is for such races.
    set -- "$@" --skip who_asks_while_another_gives_up_is_answered
    # Properties of up to 16,000 and 1,500 steps.
    set -- "$@" --skip readers_that_began_apart_fall_into_step --skip it_holds_what_a_map_would
    # A thousand and more pushes, events or reads, to reach a bound.
    set -- "$@" --skip a_long_walk_gives_the_others_a_turn --skip a_batch_is_bounded_but_a_publish_is_never_split
    set -- "$@" --skip what_is_kept_is_bounded_and_the_oldest_goes --skip a_little_is_read_ahead_and_more_while_somebody_keeps_up
    # Long for what they show here: strings out of regular expressions, a thousand parameters, two hundred filters.
    set -- "$@" --skip what_was_encoded_is_decoded --skip there_is_a_most_of_them --skip filters_that_select_the_same_share_one_buffer
fi
cargo "+$toolchain" miri test --locked --no-default-features --lib -- "$@"
