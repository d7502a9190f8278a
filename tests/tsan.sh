#!/bin/bash
# tsan.sh [FILTER...]: the integration tests under ThreadSanitizer, the relay and its standard library included.
#
# A race in the relay or in a test fails the run. No suppressions: with a standard library that is not instrumented,
# its locks and parking would look like races, so this builds one. That takes a compiler with the library's source, which
# Debian's packages have (unpacked below target/tsan, not installed), and the runtime of the toolchain in use.
set -euo pipefail
cd "$(dirname "$0")/.."

debian=$PWD/target/tsan/debian
reports=$PWD/target/tsan/reports
target=x86_64-unknown-linux-gnu
own=$(rustc --print sysroot)/lib/rustlib/$target
runtime=$(ls "$own"/lib/librustc*_rt.tsan.a 2>/dev/null | head -1) ||
    { echo "missing: the runtime of ThreadSanitizer, which comes with the toolchains of rust-lang.org"; exit 1; }
command -v apt-get >/dev/null || { echo "missing: apt-get, for Debian's packages rustc-web and rust-web-src"; exit 1; }

if [ ! -x "$debian/rustc" ]; then
    mkdir -p "$debian"/{lists/partial,cache/archives/partial,root}
    apt=(-qq -o Dir::State="$debian" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$debian/cache" -o APT::Sandbox::User=root)
    apt-get "${apt[@]}" update
    version=$(apt-cache "${apt[@]}" show rustc-web | sed -n 's/^Version: \([0-9]*\.[0-9]*\)\..*/\1/p' | head -1)
    std=libstd-rust-web-$version
    llvm=$(apt-cache "${apt[@]}" depends "$std" | sed -n 's/.*Depends: \(libllvm[0-9]*\)$/\1/p')
    (cd "$debian/cache" && apt-get "${apt[@]}" download rustc-web "$std" libstd-rust-web-dev "$llvm" libz3-4 rust-web-src)
    for package in "$debian"/cache/*.deb; do dpkg -x "$package" "$debian/root"; done
    rm -r "$debian/cache"
    printf '#!/bin/sh\nexport LD_LIBRARY_PATH=%s/usr/lib/x86_64-linux-gnu\nexec %s/usr/bin/rustc "$@"\n' \
        "$debian/root" "$debian/root" >"$debian/rustc"
    chmod +x "$debian/rustc"
fi

flags=(-Zsanitizer=thread -Zexternal-clangrt)
for argument in "-B$own/bin/gcc-ld" -fuse-ld=lld -Wl,--whole-archive "$runtime" -Wl,--no-whole-archive \
    -lstdc++ -lm -lpthread -lrt -ldl -lc; do
    flags+=("-Clink-arg=$argument")
done
export RUSTC=$debian/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}"
rm -rf "$reports"
mkdir -p "$reports"
export TSAN_OPTIONS="log_path=$reports/race halt_on_error=0 exitcode=66 history_size=4"

# What bounds memory or the time of a disk by a figure fails for what the sanitizer costs, not for a race; and nothing
# can be loaded before it, as the library that sets the clock is.
failed=0
"${CARGO:-cargo}" test --locked --test it -Zbuild-std=std,panic_unwind,test --target $target --target-dir target/tsan -- \
    --skip large_messages_that_never_end_cost_no_more_than_their_limit \
    --skip subscriptions_without_end_meet_a_limit \
    --skip clients_that_come_and_go_leave_nothing_behind \
    --skip noise_of_any_kind_leaves_the_relay_as_it_was \
    --skip publishers_wait_while_the_backlog_is_full_and_then_hear \
    --skip a_connection_that_gets_no_thread_is_told_to_come_again_and_nobody_else_notices \
    --skip clock_jumps:: \
    "$@" || failed=1

if [ -n "$(ls -A "$reports")" ]; then
    cat "$reports"/*
    echo "ThreadSanitizer found something: $reports"
    exit 1
fi
[ $failed = 0 ] && echo "ThreadSanitizer found nothing"
exit $failed
