#!/usr/bin/env bash
# Which lines of the relay its unit tests run, by part of the code, with cargo-tarpaulin and the compiler's own counters.
# The whole report lies in target/coverage.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.37.5
cargo=${CARGO:-cargo}
unset CARGO

tarpaulin=$(command -v cargo-tarpaulin || echo "$PWD/target/tools/bin/cargo-tarpaulin")
if ! "$tarpaulin" tarpaulin --version 2>/dev/null | grep -q "$version"; then
  tarpaulin=$PWD/target/tools/bin/cargo-tarpaulin
  "$tarpaulin" tarpaulin --version 2>/dev/null | grep -q "$version" ||
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_TARGET_DIR=$PWD/target/tools/build \
      "$cargo" install "cargo-tarpaulin@$version" --locked --root "$PWD/target/tools" ||
    { echo "missing: cargo-tarpaulin $version (cargo install cargo-tarpaulin@$version)"; exit 1; }
fi

mkdir -p target
"$tarpaulin" tarpaulin --engine llvm --lib --locked --skip-clean --target-dir target/coverage --include-files 'src/*' \
  --timeout 300 --out Json --output-dir target/coverage >target/coverage.log 2>&1 ||
  { tail -n 40 target/coverage.log; exit 1; }
rm -f build_rs_cov.profraw

python3 - <<'END'
import collections, json
parts = collections.defaultdict(lambda: [0, 0])
for file in json.load(open("target/coverage/tarpaulin-report.json"))["files"]:
    path = file["path"]
    path = path[len(path) - path[::-1].index("src"):] if "src" in path else path
    if "tests" in path[-1] or "tests" in path or "models" in path:
        continue
    for part in (path[0].removesuffix(".rs"), "all"):
        parts[part][0] += file["covered"]
        parts[part][1] += file["coverable"]
for part, (covered, lines) in sorted(parts.items(), key=lambda it: (it[0] == "all", it[0])):
    print(f"{part:<10} {covered:>6} of {lines:>6} lines {100 * covered / max(lines, 1):>5.1f} %")
END
