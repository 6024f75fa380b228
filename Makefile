# Cargo builds into $CARGO_TARGET_DIR when that is set; the programs are found there.
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
BIN := $(TARGET)/release/tidelog
FEEDER := $(TARGET)/release/examples/quakes
PARTS := append replay seek frames fanout
BROWSER_TESTS := framing.mjs resume.mjs page.mjs demo.mjs board.mjs tokens.mjs
PYTHON := $(or $(PYTHON_BIN),python3)

.PHONY: help run demo board tokens test check audit bench bench-parts bench-peers soak sim threads crash power flips chaos fuzz miri sanitize deps deps-test

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: deps ## build, then serve ./tidelog-data on 127.0.0.1:4242
	cargo build --release --locked
	@printf '\nIn another terminal:\n  curl -N http://127.0.0.1:4242/topics/hello\n  curl -d "hello, world" http://127.0.0.1:4242/topics/hello\n\n'
	@exec $(BIN) serve --data ./tidelog-data

demo: deps ## a week of earthquakes on a page, with a server to kill
	cargo build --release --locked --bins --example quakes
	@exec examples/quakes/demo.sh $(BIN) $(FEEDER)

board: deps ## a page that loads its state from a database and stays in sync
	cargo build --release --locked
	@exec examples/with-tidelog.sh $(BIN) 4244 $(PYTHON) $(abspath examples/board/server.py)

tokens: deps ## a long answer, token by token, that outlives its connections
	cargo build --release --locked
	@exec examples/with-tidelog.sh $(BIN) 4245 $(PYTHON) $(abspath examples/tokens/server.py)

test: deps-test ## every test, those in a real browser too
	cargo build --release --locked --bins --examples
	cargo test --release --locked
	cd tests/browser && npm ci --no-audit --no-fund
	cd tests/browser && TIDELOG_BIN=$(BIN) QUAKES_BIN=$(FEEDER) node --test --test-concurrency=1 $(BROWSER_TESTS)

sim: deps ## simulate crashes and failing disks by seeds (SEEDS=n FIRST=n STEPS=n, or SEED=n to replay one)
	SEEDS="$(SEEDS)" SEED="$(SEED)" FIRST="$(FIRST)" STEPS="$(STEPS)" cargo test --release --locked --test seam simulation::simulation -- --nocapture

threads: deps ## what threads share, under schedules of its choosing (SCHEDULES=n SEED=n)
	cargo test --release --locked --test threads

crash: deps-test ## kill the server again and again on one directory (KILLS=300)
	KILLS=$(or $(KILLS),300) cargo test --release --locked --test it crash:: -- --nocapture --test-threads=1

power: deps-test ## cut the power at recorded moments (CUTS=1000)
	CUTS=$(or $(CUTS),1000) cargo test --release --locked --test power -- --nocapture --test-threads=1

flips: deps ## flip every bit of every file of a small log, and look for it
	FLIPS=all cargo test --release --locked --test store every_flipped_bit -- --nocapture

chaos: deps-test ## a bad network for so long (CHAOS_SECONDS=600 SEED=n)
	CHAOS_SECONDS=$(or $(CHAOS_SECONDS),600) cargo test --release --locked --test chaos each_subscriber -- --nocapture

fuzz: deps ## fuzz by coverage, with a nightly toolchain (SECONDS=60, one of them: FUZZ=name)
	@fuzz/fuzz.sh "$(or $(SECONDS),60)" "$(FUZZ)"

check: deps ## formatting, lints, licences, documentation
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings
	cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny check bans licenses sources
	RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --no-deps

audit: ## known vulnerabilities of what it is built from (needs the network)
	cargo deny --version >/dev/null 2>&1 || cargo install --locked cargo-deny
	cargo deny check advisories

bench: deps ## the table of docs/performance.md, most of an hour (a part: ROWS=fanout,publish PAIRS=3)
	cargo bench --profile release --locked --bench table -- --rows "$(ROWS)" --pairs "$(PAIRS)" --peers "$(PEERS)" --scale "$(SCALE)"

soak: deps ## a long run with clients that come and go, then an overload; writes docs/soak.md (MINUTES=30)
	cargo bench --profile release --locked --bench soak -- --minutes "$(or $(MINUTES),10)" --dry "$(DRY)"

miri: deps ## tests of src/ in an interpreter that notices undefined behaviour (needs a nightly toolchain)
	packaging/miri.sh

sanitize: deps-test ## tests over sockets under a sanitizer (SANITIZER=address, with leaks, or thread; needs a nightly toolchain)
	SANITIZER="$(or $(SANITIZER),address)" packaging/sanitize.sh

bench-parts: deps ## parts of the program in process, beside their limits
	cargo bench --profile release --locked $(PARTS:%=--bench %)

bench-peers: ## install the servers that `make bench` compares with
	@packaging/install-peers.sh

deps:
	@packaging/install-deps.sh build

deps-test:
	@packaging/install-deps.sh test
