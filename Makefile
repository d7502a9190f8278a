# The commands of this project. `make check` is what continuous integration runs.

CARGO ?= cargo
TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# The WebSocket that Node 20 has not built in, for the tests of the client for browsers.
WS := 8.23.0
STATIC := target/$(TARGET)/release/landline

.PHONY: check format lint test js docs bench-once bench static clean

check: format lint test js docs bench-once static

format: need-rust
	$(CARGO) fmt --check

lint: need-rust
	$(CARGO) clippy --all-targets --locked -- -D warnings
	$(CARGO) clippy --no-default-features --locked -- -D warnings

test: need-rust
	$(CARGO) test --locked

# The client for browsers, under Node against the relay. What the tests need beside Node lies in target/js.
js: need-rust need-node
	$(CARGO) build --locked
	@test "$$(cat target/js/node_modules/ws/package.json 2>/dev/null | sed -n 's/.*"version": "\(.*\)".*/\1/p')" = $(WS) || \
		npm install --prefix target/js --no-save --no-audit --no-fund ws@$(WS)
	node --test tests/js/

docs: need-rust
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked

# Every bench once: that they run, not how fast.
bench-once: need-rust
	$(CARGO) bench --locked -- --test

bench: need-rust
	$(CARGO) bench --locked

# The fully static binary, checked to be one, to be small, and to resolve and bind a host name.
static: need-rust
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release --locked --target $(TARGET)
	tests/static.sh $(STATIC) 6200000
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --profile small --locked --target $(TARGET) \
		--no-default-features --target-dir target/small
	tests/static.sh target/small/$(TARGET)/small/landline 4000000

clean:
	$(CARGO) clean

.PHONY: need-rust need-node
need-rust:
	@command -v $(CARGO) >/dev/null || { echo "missing: cargo (a Rust toolchain)"; exit 1; }

need-node:
	@node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2>/dev/null && command -v npm >/dev/null || \
		{ echo "missing: node 20 or newer with npm, for the tests of landline.js"; exit 1; }
