# The commands of this project. `make check` is what continuous integration runs.

CARGO ?= cargo
TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# For the tests in JavaScript: the WebSocket that Node 20 has not built in, what drives Chromium, and what looks
# whether everybody can use a page.
PACKAGES := ws@8.23.0 playwright-core@1.65.1 axe-core@4.14.1
# For conformance and interoperability: the Autobahn test suite, and two WebSocket clients.
PYTHON_PACKAGES := kosoku==0.1.0 websockets==17.4 websocket-client==1.9.2
STATIC := target/$(TARGET)/release/landline

.PHONY: check check-tests check-builds check-fuzz needs format lint test pauses models models-long loom tsan mutants coverage soak netns js browser packages docs
.PHONY: conformance interop python-packages
.PHONY: fuzz fuzz-long fuzz-build bench-once bench peers counts counts-build static static-default static-small clean

# What waits goes beside what computes: the tests beside the builds for speed, the browser beside the fuzz targets. Those
# run behind the others in the order of the processes, so that they delay nobody. Packages are installed before.
check: needs format lint
	$(MAKE) -j2 -O check-tests check-builds
	$(MAKE) -j2 -O browser check-fuzz
	$(MAKE) counts

# One after the other: they share a directory.
check-tests:
	$(MAKE) test
	$(MAKE) conformance
	$(MAKE) interop
	$(MAKE) js
	$(MAKE) models
	$(MAKE) docs
	$(MAKE) bench-once

check-builds:
	nice -n 10 $(MAKE) fuzz-build
	nice -n 10 $(MAKE) static
	nice -n 10 $(MAKE) counts-build

# From the corpora of the repository and one seed; `make fuzz` tries others.
check-fuzz:
	nice -n 10 $(MAKE) fuzz FUZZ_SEED=1

format: need-rust
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml

lint: need-rust
	$(CARGO) clippy --all-targets --locked -- -D warnings
	$(CARGO) clippy --no-default-features --locked -- -D warnings

# The tests wait more than they compute.
test: need-rust want-faults
	RUST_TEST_THREADS=$$((2 * $$(nproc))) $(CARGO) test --locked

# All tests with a relay whose threads pause at random, few for long and many for a moment: what fails depends on how fast
# the relay is. Not part of `check`.
PAUSES := 30:120 300:30
pauses: need-rust need-chromium packages want-faults
	set -e; for pauses in $(PAUSES); do export LANDLINE_PAUSES=$$pauses LANDLINE=target/pauses/debug/landline; \
		RUSTFLAGS="--cfg landline_pauses" RUST_TEST_THREADS=$$((4 * $$(nproc))) \
			$(CARGO) test --locked --lib --test it --test embedded --target-dir target/pauses; \
		node --test tests/js/; node --test tests/browser/*.test.mjs; done

# What threads hand to one another, under schedules that a checker chooses; each known bug must be found. How many
# schedules: so many times those that each model says.
SCHEDULES := 5
MODEL := models::
models: need-rust
	RUST_BACKTRACE=0 RUSTFLAGS="--cfg shuttle" LANDLINE_SCHEDULES=$(SCHEDULES) \
		$(CARGO) test --locked --lib --target-dir target/models -- $(MODEL)

models-long:
	$(MAKE) models SCHEDULES=200

# The few places that rest on the ordering of atomics, under every order that the memory model allows. loom builds in
# half the time without optimizing what it never runs.
loom: need-rust
	RUST_BACKTRACE=0 RUSTFLAGS="--cfg loom" $(CARGO) test --locked --lib --target-dir target/loom \
		--config 'profile.dev.package."*".opt-level=0' -- orderings:: --test-threads=2

# The integration tests with ThreadSanitizer, on Debian; not part of `check`.
tsan: need-rust
	tests/tsan.sh

# Every change that cargo-mutants knows to the pure core and the wire, against their unit tests; MUTANTS names parts of
# them. Not part of `check`.
mutants: need-rust
	CARGO="$(CARGO)" tests/mutants.sh $(MUTANTS)

# Which lines the unit tests run. Not part of `check`.
coverage: need-rust need-python
	CARGO="$(CARGO)" tests/coverage.sh

# Clients of all kinds, faults and restarts, for an hour; SOAK_SECONDS, SOAK_CONNECTIONS, SOAK_LIFE and SOAK_SEED change
# that. Not part of `check`.
soak: need-rust
	RUST_BACKTRACE=0 $(CARGO) test --locked --test soak -- --ignored --nocapture

# A real link between the relay and its clients that fails in every way, in two network namespaces; needs root. Not part
# of `check`. LANDLINE_SEED=N repeats an order.
netns: need-rust need-nft
	CARGO="$(CARGO)" tests/netns.sh

# The client for browsers, under Node against the relay.
js: need-rust packages
	$(CARGO) build --locked
	node --test tests/js/

# The Autobahn test suite's fuzzing client against the relay's own reader, outbox and writer, built to echo.
conformance: need-rust python-packages
	RUSTC_WORKSPACE_WRAPPER="$(CURDIR)/tests/interop/rustc-echo.sh" $(CARGO) build --locked --bin landline
	mkdir -p target/conformance && cp target/debug/landline target/conformance/landline
	$(CARGO) build --locked
	target/python/bin/python -B tests/interop/conformance.py

# Clients that others wrote, against the relay: once, or again and again for so many seconds.
INTEROP_SECONDS ?= 0
interop: need-rust need-curl packages python-packages
	$(CARGO) build --locked
	@end=$$(($$(date +%s) + $(INTEROP_SECONDS))); while \
		target/python/bin/python -B tests/interop/clients.py && node --test tests/interop/ || exit 1; \
		[ "$$(date +%s)" -lt $$end ]; do :; done

# The dashboard, and the client for browsers, in Chromium. Pictures of every section go to target/screenshots.
browser: need-rust need-chromium packages
	$(CARGO) build --locked
	node --test tests/browser/*.test.mjs

# What the tests in JavaScript need beside Node lies in target/js.
packages: need-node
	@test "$$(cat target/js/installed 2>/dev/null)" = "$(PACKAGES)" || \
		{ npm install --prefix target/js --no-save --no-audit --no-fund $(PACKAGES) && \
		echo "$(PACKAGES)" >target/js/installed; }

# What the tests in Python need lies in target/python.
python-packages: need-python
	@test "$$(cat target/python/installed 2>/dev/null)" = "$(PYTHON_PACKAGES)" || \
		{ python3 -m venv --clear target/python && target/python/bin/pip install -q $(PYTHON_PACKAGES) && \
		echo "$(PYTHON_PACKAGES)" >target/python/installed; }

docs: need-rust
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked

# Each fuzz target for so many seconds, two at a time: `make fuzz FUZZ_SECONDS=600 FUZZ_TARGETS=relay`.
# What is found lies in target/fuzz/found; what was learnt, from which the next run goes on, in target/fuzz/corpus.
FUZZ_SECONDS ?= 60
FUZZ_LONG_SECONDS ?= 900
# 0: another one each time.
FUZZ_SEED ?= 0
FUZZ_TARGETS ?= http_head request texts patterns store_records log_model state_model relay
FUZZ_BIN := target/fuzz/$(TARGET)/release
# What the compiler of every stable Rust can do by itself: coverage for libFuzzer.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares

fuzz: fuzz-build
	@printf '%s\n' $(FUZZ_TARGETS) | FUZZ_BIN=$(FUZZ_BIN) FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$(FUZZ_SEED) \
		xargs -n 1 -P 2 fuzz/run.sh

fuzz-long:
	$(MAKE) fuzz FUZZ_SECONDS=$(FUZZ_LONG_SECONDS)

fuzz-build: need-rust need-cxx
	RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --release --locked --manifest-path fuzz/Cargo.toml \
		--target $(TARGET) --target-dir target/fuzz

# Every bench once: that they run, not how fast.
bench-once: need-rust
	$(CARGO) test --locked --benches -- --test

# Every bench, with the figures of benches/README.md; among them other relays, as Debian packages them.
bench: need-rust need-peers
	$(CARGO) bench --locked

# Other relays beside this one alone.
peers: need-rust need-peers
	$(CARGO) bench --locked --bench peers

# The instructions that the hot paths take, compared with benches/baseline.txt; UPDATE_COUNTS=1 writes it.
counts: need-rust need-valgrind
	CARGO="$(CARGO)" tests/counts.sh

counts-build: need-rust
	$(CARGO) bench --locked --bench counts --no-run

# The fully static binary, checked to be one, to be small, and to resolve and bind a host name.
static: static-default static-small

static-default: need-rust
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release --locked --target $(TARGET)
	tests/static.sh $(STATIC) 6300000

static-small: need-rust
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --profile small --locked --target $(TARGET) \
		--no-default-features --target-dir target/small
	tests/static.sh target/small/$(TARGET)/small/landline 4000000

clean:
	$(CARGO) clean

# Installs a Debian package, if that is up to us.
apt = test "$$(id -u)" = 0 && apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(1)

# All that `check` needs, one after the other: apt does not run twice at a time.
needs:
	$(MAKE) need-rust
	$(MAKE) need-cxx
	$(MAKE) need-node
	$(MAKE) need-python
	$(MAKE) need-curl
	$(MAKE) need-chromium
	$(MAKE) need-valgrind
	$(MAKE) want-faults
	$(MAKE) packages
	$(MAKE) python-packages

.PHONY: need-rust need-cxx need-node need-python need-curl need-chromium need-valgrind need-peers need-nft want-faults
need-rust:
	@command -v $(CARGO) >/dev/null || { echo "missing: cargo (a Rust toolchain)"; exit 1; }

need-cxx:
	@command -v c++ >/dev/null || { $(call apt,g++); } || \
		{ echo "missing: c++ (a C++ compiler; on Debian: apt-get install g++), for libFuzzer"; exit 1; }

need-node:
	@node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && command -v npm >/dev/null || \
		{ echo "missing: node 20 or newer with npm, for the tests in JavaScript"; exit 1; }

need-python:
	@python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ $(call apt,python3-venv); } || \
		{ echo "missing: python3 3.11 or newer with venv (on Debian: apt-get install python3-venv), for WebSocket conformance"; exit 1; }

need-curl:
	@command -v curl >/dev/null || { $(call apt,curl); } || \
		{ echo "missing: curl (on Debian: apt-get install curl), for the tests of interoperability"; exit 1; }

need-chromium:
	@command -v chromium >/dev/null || { $(call apt,chromium); } || \
		{ echo "missing: chromium (on Debian: apt-get install chromium), for the tests of the dashboard"; exit 1; }

need-valgrind:
	@command -v valgrind >/dev/null || { $(call apt,valgrind); } || \
		{ echo "missing: valgrind (on Debian: apt-get install valgrind), which counts instructions"; exit 1; }

# Whoever is missing is left out of the comparison, which says so. /usr/sbin is not in everybody's path.
need-peers:
	@PATH="$$PATH:/usr/sbin"; command -v nats-server >/dev/null && command -v mosquitto >/dev/null && \
		command -v redis-server >/dev/null || { $(call apt,nats-server mosquitto redis-server); } || true

need-nft:
	@{ command -v ip && command -v nft; } >/dev/null || { $(call apt,iproute2 nftables); } || \
		{ echo "missing: ip and nft (on Debian: apt-get install iproute2 nftables), and root, for network faults"; exit 1; }

# What lets system calls fail and sets the clock; tests that lack it say so, and pass.
want-faults:
	@{ command -v strace && ls /usr/lib/*/faketime/libfaketime.so.1; } >/dev/null 2>&1 || { $(call apt,strace libfaketime); } || \
		echo "missing: strace, libfaketime (on Debian: apt-get install strace libfaketime); some faults are not tried"
