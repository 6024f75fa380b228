#!/bin/sh
# The fuzzers, guided by coverage: fuzz/fuzz.sh [SECONDS [TARGET]]. Each target runs for SECONDS (60), two at a time (JOBS).
#
# What it finds lies in fuzz/artifacts/TARGET: move it to fuzz/regressions/TARGET, where tests/fuzz.rs runs it from then on. New inputs
# that reach more code go to fuzz/found/TARGET, which is not committed; `fuzz/fuzz.sh minimise` rewrites fuzz/corpus from both.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
only=${2:-}
jobs=${JOBS:-2}
toolchain=${NIGHTLY:-nightly}

if ! cargo "+$toolchain" --version >/dev/null 2>&1; then
    echo "the fuzzers need a nightly toolchain (sanitizers, coverage): rustup toolchain install nightly --profile minimal" >&2
    exit 1
fi
cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz

# RocksDB is not compiled again for the fuzzers' flags: the product's own is linked, without sanitizers.
target=${CARGO_TARGET_DIR:-target}
built() { ls -t "$target"/release/build/librocksdb-sys-*/out/librocksdb.a 2>/dev/null | head -n 1; }
[ -n "$(built)" ] || cargo build --release --locked
ROCKSDB_LIB_DIR=$(dirname "$(realpath "$(built)")")
export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
# The same versions of everything as the product has.
cp Cargo.lock fuzz/Cargo.lock

scratch=$(mktemp -d)
running=
trap 'for id in $running; do kill "$id" 2>/dev/null || true; done; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
export TMPDIR="$scratch"
export CARGO_TARGET_DIR="${FUZZ_TARGET_DIR:-fuzz/target}"

targets=${only:-$(cargo "+$toolchain" fuzz list)}
echo "building the fuzzers"
cargo "+$toolchain" fuzz build --release $only
triple=$(rustc "+$toolchain" -vV | sed -n 's/^host: //p')
programs="$CARGO_TARGET_DIR/$triple/release"

if [ "$seconds" = minimise ]; then
    most=${MOST:-14}
    for name in $targets; do
        mkdir -p "$scratch/$name" "fuzz/found/$name" "fuzz/corpus/$name"
        # A small set that reaches what all of them reach; of that an even sample by size, so that the repository stays small. What was
        # written by hand, under a name that says what it is, stays.
        "$programs/$name" -set_cover_merge=1 -max_len=4096 "$scratch/$name" "fuzz/corpus/$name" "fuzz/found/$name" >/dev/null 2>&1
        found=$(ls "$scratch/$name" | wc -l)
        step=$(((found + most - 1) / most))
        ls fuzz/corpus/"$name" | grep -E '^[0-9a-f]{40}$' | while read -r file; do rm "fuzz/corpus/$name/$file"; done
        ls -S "$scratch/$name" | awk -v step="$step" 'step < 2 || NR % step == 1' | while read -r file; do
            mv "$scratch/$name/$file" "fuzz/corpus/$name/$file"
        done
        echo "$name: $(ls "fuzz/corpus/$name" | wc -l) inputs"
    done
    exit 0
fi

# The bound on one allocation is what "bounded memory" means for bytes of a few kilobytes.
one() {
    mkdir -p "fuzz/found/$1" "fuzz/artifacts/$1"
    "$programs/$1" -max_total_time="$seconds" -max_len=4096 -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=64 -print_final_stats=1 \
        -artifact_prefix="fuzz/artifacts/$1/" "fuzz/found/$1" "fuzz/corpus/$1" "fuzz/regressions/$1" >"$scratch/$1.log" 2>&1
}

tell() {
    if [ "$2" = 0 ]; then
        last=$(grep -a 'cov:' "$scratch/$1.log" | tail -n 1 | sed 's/.*cov: \([0-9]*\) ft: \([0-9]*\).*/\1 edges, \2 features/')
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$scratch/$1.log")
        echo "$1: $runs runs, $last, no fault"
    else
        failed=1
        echo "$1: A FAULT" >&2
        grep -a -A 6 -e 'panicked at' -e 'ERROR:' "$scratch/$1.log" | head -n 30 >&2
        grep -a 'Test unit written' "$scratch/$1.log" >&2
    fi
}

failed=0
set -- $targets
echo "running $# targets for $seconds s each, $jobs at a time"
while [ $# -gt 0 ]; do
    running= names=
    while [ $# -gt 0 ] && [ "$(echo $names | wc -w)" -lt "$jobs" ]; do
        mkdir -p "fuzz/regressions/$1"
        one "$1" &
        running="$running $!" names="$names $1"
        shift
    done
    rest=$*
    set -- $names
    for id in $running; do
        code=0
        wait "$id" || code=$?
        tell "$1" "$code"
        shift
    done
    running=
    set -- $rest
done
exit "$failed"
