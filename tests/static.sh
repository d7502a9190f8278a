#!/usr/bin/env bash
# Checks that the binary is static, has at most so many bytes, that it resolves and binds a host name, and how
# little memory it takes when idle. What it has of its own counts: how much of the file is mapped is up to the
# kernel, which maps whatever of it happens to lie in the page cache.
set -eu
binary=$1
bytes_max=$2
fail() { echo "static: $*" >&2; exit 1; }

if command -v ldd >/dev/null; then
  ldd "$binary" 2>&1 | grep -qE 'statically linked|not a dynamic executable' || fail "$binary is linked dynamically"
elif command -v file >/dev/null; then
  file "$binary" | grep -q 'static' || fail "$binary is linked dynamically"
else
  fail "missing: ldd or file, to look at the binary"
fi

bytes=$(stat -c %s "$binary")
[ "$bytes" -lt "$bytes_max" ] || fail "$binary has $bytes bytes, allowed are $bytes_max"

out=$(mktemp)
"$binary" serve --listen localhost:0 >"$out" 2>/dev/null &
pid=$!
trap 'kill "$pid" 2>/dev/null || true; rm -f "$out"' EXIT
for _ in $(seq 100); do
  grep -q '^listening on http://' "$out" && break
  kill -0 "$pid" 2>/dev/null || fail "the relay did not start on localhost:0"
  read -rt 0.05 <> <(:) || true
done
grep -q '^listening on http://127.0.0.1:[1-9]' "$out" || fail "localhost was not resolved and bound: $(cat "$out")"
resident=$(awk '/^VmRSS/ {print $2}' "/proc/$pid/status")
own=$(awk '/^RssAnon/ {print $2}' "/proc/$pid/status")
[ "$own" -lt 1536 ] || fail "the idle relay takes $own KiB of its own, allowed are 1.5 MiB"
kill -TERM "$pid"
wait "$pid" || fail "the relay did not end well"
echo "static: $bytes bytes, $own KiB of its own when idle, $resident KiB with mapped code"
