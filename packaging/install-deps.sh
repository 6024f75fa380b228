#!/usr/bin/env bash
# Installs what building (`build`) or testing (`test`) needs and the system lacks. Does nothing when all is there.
# Ends with 0 only when everything is there afterwards; otherwise it says exactly what is missing.
set -euo pipefail

rust_wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$(dirname "$0")/../Cargo.toml")
node_wanted=18.19 # Ubuntu 24.04 has that, Debian 12 a later 18
python_wanted=3.9 # Debian 11 has that

# True when $1 is version $2 or later.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }
has() { command -v "$1" >/dev/null 2>&1; }
any() { local name; for name in "$@"; do if has "$name"; then return 0; fi; done; return 1; }

has_libclang() {
    local found
    for found in ${LIBCLANG_PATH:+"$LIBCLANG_PATH"/libclang*.so*} /usr/lib/llvm*/lib*/libclang*.so* /usr/lib/*/libclang*.so* \
        /usr/lib64/libclang*.so* /usr/lib/libclang*.so* /opt/homebrew/opt/llvm/lib/libclang.dylib /Library/Developer/CommandLineTools/usr/lib/libclang.dylib; do
        case $found in *libclang-cpp*) continue ;; esac # clang's own library of C++, which comes with many a tool and is not looked for
        if [ -e "$found" ]; then return 0; fi
    done
    return 1
}
# Ubuntu's chromium-browser is a stub that only says that the snap is wanted: so it is run, not looked at.
has_chromium() {
    local name
    for name in ${CHROMIUM_BIN:+"$CHROMIUM_BIN"} chromium chromium-browser google-chrome-stable google-chrome; do
        if "$name" --version >/dev/null 2>&1; then return 0; fi
    done
    return 1
}
has_python() { "${PYTHON_BIN:-python3}" -c "import sys, sqlite3; sys.exit(sys.version_info < (${python_wanted/./, }))" >/dev/null 2>&1; }
# Whether apt-get has a Chromium that is none of those stubs. Their versions are like 2:1snap1-0ubuntu2.
apt_has_chromium() {
    local candidate
    candidate=$(apt-cache policy chromium 2>/dev/null | sed -n 's/^ *Candidate: //p')
    case $candidate in '' | '(none)' | *snap*) return 1 ;; esac
}

# Prints a line "package what-for" for each thing that is missing.
missing() {
    any c++ g++ clang++ || echo "g++ a C++ compiler, for RocksDB"
    has make || echo "make make"
    has_libclang || echo "libclang-dev libclang, for RocksDB's bindings"
    if [ "$1" = test ]; then
        has node || echo "nodejs Node.js $node_wanted or later, for the browser tests"
        has npm || echo "npm npm, for the browser tests"
        has_chromium || echo "chromium a Chromium, for the browser tests (or name one in CHROMIUM_BIN)"
        has_python || echo "python3 Python $python_wanted or later, for the tests of the examples (or name one in PYTHON_BIN)"
        has strace || echo "strace strace, for the tests that look at system calls"
        has cc || echo "gcc a C compiler, for what stands between the server and its disk in tests"
        has ip || echo "iproute2 ip, for the tests that take the network away"
        has unshare && has setpriv || echo "util-linux unshare and setpriv, for the tests with disks and networks of their own"
    fi
}

# What no package can mend. Ends the script when there is anything.
refuse_what_is_too_old() {
    local found bad=0
    found=$(cargo --version 2>/dev/null | cut -d ' ' -f 2 || true)
    if ! at_least "${found:-0}" "$rust_wanted"; then
        echo "Rust $rust_wanted or later is needed, here is ${found:-none}: see https://rustup.rs" >&2
        bad=1
    fi
    if [ "$1" = test ] && has node; then
        found=$(node --version | tr -d v)
        if ! at_least "$found" "$node_wanted"; then
            echo "Node.js $node_wanted or later is needed, here is $found: see https://nodejs.org" >&2
            bad=1
        fi
    fi
    return "$bad"
}

tell() {
    echo "$1 Please install:" >&2
    missing "$what" | while read -r package reason; do
        if [ "$package" = chromium ] && has apt-cache && ! apt_has_chromium; then
            reason="$reason. This system's package is only a stub for a snap: Google Chrome's own package (https://www.google.com/chrome/) will do"
        fi
        printf '  %-14s %s\n' "$package" "$reason" >&2
    done
    exit 1
}

what=${1:-build}
case $what in build | test) ;; *) echo "usage: $0 [build|test]" >&2; exit 2 ;; esac

if [ -n "$(missing "$what")" ]; then
    has apt-get || tell "Something is missing, and there is no apt-get here."
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || tell "Something is missing, and installing it needs root."
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get update -q || tell "apt-get update failed."
    packages=()
    for package in $(missing "$what" | cut -d ' ' -f 1); do
        if [ "$package" != chromium ] || apt_has_chromium; then packages+=("$package"); fi
    done
    if [ "${#packages[@]}" -gt 0 ]; then
        echo "installing ${packages[*]}"
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${packages[@]}" || tell "apt-get install failed."
    fi
    [ -z "$(missing "$what")" ] || tell "Something is still missing."
fi
refuse_what_is_too_old "$what"
