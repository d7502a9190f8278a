# The commands of this project. `make check` is what continuous integration runs.

CARGO ?= cargo
TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
STATIC := target/$(TARGET)/release/landline

.PHONY: check format lint test docs bench-once bench static clean

check: format lint test docs bench-once static

format: need-rust
	$(CARGO) fmt --check

lint: need-rust
	$(CARGO) clippy --all-targets --locked -- -D warnings
	$(CARGO) clippy --no-default-features --locked -- -D warnings

test: need-rust
	$(CARGO) test --locked

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

.PHONY: need-rust
need-rust:
	@command -v $(CARGO) >/dev/null || { echo "missing: cargo (a Rust toolchain)"; exit 1; }
