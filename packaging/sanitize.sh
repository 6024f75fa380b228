#!/bin/sh
# The tests over real sockets and those within src/ under a sanitizer: [SANITIZER=address|thread] packaging/sanitize.sh [FILTER…]
#
# address (the default), which looks for leaks too; some of the simulation (SEEDS=500) as well.
# thread: accesses to memory that nothing puts in an order, and locks of the C library that are taken in two orders. Rust's own library is
# compiled anew for it, as it must see its locks and channels too.
#
# This house has no unsafe code of its own, so it is the libraries below it that are watched as they are used here: reads and writes
# of memory that is freed or not theirs, what the server has not given back when it ends by itself (leaks), races. RocksDB is linked as
# it is: its memory comes from the sanitizer's allocator and its locks are the sanitizer's all the same, but what it reads and writes itself
# is not watched. ROCKSDB_LIB_DIR names one that is compiled already.
#
# Every process writes what it finds to a file of its own, a server that is killed right after too: one such file is a failure.
# First a program that does what is looked for must be caught, by the same compiler, options and files.
set -eu
cd "$(dirname "$0")/.."
toolchain=${NIGHTLY:-nightly}
sanitizer=${SANITIZER:-address}

fail() {
    echo "sanitize: $*" >&2
    exit 1
}
case $sanitizer in
    address | thread) ;;
    *) fail "SANITIZER is address or thread, not $sanitizer" ;;
esac
cargo "+$toolchain" --version >/dev/null 2>&1 ||
    fail "it needs a nightly toolchain: rustup toolchain install nightly --profile minimal --component rust-src"
triple=$(rustc "+$toolchain" -vV | sed -n 's/^host: //p')
sysroot=$(rustc "+$toolchain" --print sysroot)
if [ "$sanitizer" = thread ]; then
    [ -f "$sysroot/lib/rustlib/src/rust/library/Cargo.lock" ] ||
        fail "the thread sanitizer needs the source of Rust's library: rustup component add rust-src --toolchain $toolchain"
    command -v cc >/dev/null || fail "the thread sanitizer needs a C compiler named cc: apt-get install gcc"
fi

# RocksDB is not compiled again: the product's own is linked.
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
built() { ls -t "$target"/release/build/librocksdb-sys-*/out/librocksdb.a 2>/dev/null | head -n 1; }
if [ -z "${ROCKSDB_LIB_DIR:-}" ]; then
    [ -n "$(built)" ] || cargo build --release --locked
    ROCKSDB_LIB_DIR=$(dirname "$(built)")
fi
export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# One directory for each: both put the server that the tests start under the same name.
CARGO_TARGET_DIR=$(realpath -m "${SANITIZER_TARGET_DIR:-$target/sanitizer}/$sanitizer")
export CARGO_TARGET_DIR
mkdir -p "$CARGO_TARGET_DIR"
# With --target the flags are for what runs, not for build scripts and macros.
case $sanitizer in
    address)
        flags="-Zsanitizer=address" build_std='' symbol=__asan_init
        export ASAN_OPTIONS="detect_leaks=1:log_path=$work/found"
        fault='let a = Box::into_raw(Box::new(1_u8)); unsafe { drop(Box::from_raw(a)); a.read_volatile(); }'
        ;;
    thread)
        cc -O1 -Wall -c packaging/tsan.c -o "$work/tsan.o"
        if ! cmp -s "$work/tsan.o" "$CARGO_TARGET_DIR/tsan.o"; then
            cp "$work/tsan.o" "$CARGO_TARGET_DIR/tsan.o"
            # cargo does not know of it: what it is linked into is to be linked anew.
            rm -rf "$CARGO_TARGET_DIR/$triple"/release/.fingerprint/tidelog-*
        fi
        flags=$(printf '%s\037' -Zsanitizer=thread "-Clink-arg=$CARGO_TARGET_DIR/tsan.o")-Clink-arg=-Wl,--wrap=fcntl
        build_std=-Zbuild-std symbol=__tsan_init
        # What is found is told by its file, not by how the program ends: tests judge that.
        export TSAN_OPTIONS="exitcode=0:second_deadlock_stack=1:suppressions=$PWD/packaging/tsan.supp:log_path=$work/found"
        fault='static mut A: u8 = 0; let other = std::thread::spawn(|| unsafe { A = 1 }); unsafe { A = 2 }; let _ = other.join();'
        ;;
esac

reports() { ls "$work"/found.* 2>/dev/null; }
echo "fn main() { $fault }" >"$work/fault.rs"
rustc "+$toolchain" --edition 2021 -Zsanitizer="$sanitizer" -Cunsafe-allow-abi-mismatch=sanitizer -o "$work/fault" "$work/fault.rs" ||
    fail "the $sanitizer sanitizer cannot be linked with the toolchain $toolchain on $triple; a newer one: rustup update $toolchain"
"$work/fault" >"$work/said" 2>&1 || :
if ! reports >/dev/null; then
    cat "$work/said" >&2
    fail "the $sanitizer sanitizer does not work on this machine: it missed a fault that was made for it (where it complains of its memory's" \
        "layout: sysctl vm.mmap_rnd_bits=28)"
fi
rm "$work"/found.*

code=0
export CARGO_ENCODED_RUSTFLAGS="$flags"
# Without the program's own allocator: the sanitizer's is to give all memory.
# shellcheck disable=SC2086 # no option at all, or one
run() { cargo "+$toolchain" test --release --locked --no-default-features $build_std --target "$triple" --no-fail-fast "$@" || code=1; }
# The one looks at the program through a tracer, under which leaks cannot be looked for; the other bounds the server's memory, to which
# the sanitizer adds its own.
slow=''
# A disk that hangs is told from one that does not by time, which the thread sanitizer takes several times as much of.
[ "$sanitizer" = address ] || slow='--skip a_disk_that_hangs_leaves_an_outcome'
# shellcheck disable=SC2086 # no option at all, or two
run --lib --bins --test it -- "$@" $slow --skip every_ack_comes_after_an_fsync_that_began_after_its_request \
    --skip many_who_read_a_large_state_slowly_share_it_and_hold_up_nobody
# The tests start this one.
grep -q "$symbol" "$CARGO_TARGET_DIR/$triple/release/tidelog" || fail "the server was built without the $sanitizer sanitizer"
# No order of its scenarios: they have neither sockets nor foreign code, and take minutes each here. Nor has it threads.
[ $# -gt 0 ] || [ "$sanitizer" = thread ] || SEEDS=${SEEDS:-500} run --test seam -- simulation::
for report in $(reports); do
    code=1
    cat "$report" >&2
done
exit "$code"
