#!/usr/bin/env bash
# mutants.sh [PART...]: changes the pure core and the wire in each way that cargo-mutants knows, one at a time, and runs
# the unit tests of the part against it. A mutant that survives and is not in tests/mutants.txt fails, and so does one
# that is there and does not survive any more.
#
# Each part becomes a package of its own below target/mutants, so that a mutant costs a second rather than a build of
# all: copies of its modules, and another package with what they stand on, which is built once. Random tests run for a
# small part of their rounds, and a mutant whose tests do not end counts as killed.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
dir=$root/target/mutants
list=$root/tests/mutants.txt
version=27.1.0
export CARGO_TARGET_DIR=$dir/build
cargo=${CARGO:-cargo}
unset CARGO

mutants=$(command -v cargo-mutants || echo "$root/target/tools/bin/cargo-mutants")
if [ "$("$mutants" mutants --version 2>/dev/null)" != "cargo-mutants $version" ]; then
  mutants=$root/target/tools/bin/cargo-mutants
  [ "$("$mutants" mutants --version 2>/dev/null)" = "cargo-mutants $version" ] ||
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_TARGET_DIR=$root/target/tools/build \
      "$cargo" install "cargo-mutants@$version" --locked --root "$root/target/tools" ||
    { echo "missing: cargo-mutants $version (cargo install cargo-mutants@$version)"; exit 1; }
fi

# What a part takes from the project, its own modules, and of these the files that are changed.
part() {
  case $1 in
    wire) from=base own='name wire' files='src/name.rs src/wire/**/*.rs' ;;
    presence) from='base name' own=presence files=src/presence.rs ;;
    state) from='base name wire' own=state files='src/state/entry.rs src/state/map.rs src/state/map/*.rs src/state/space.rs' ;;
    topic)
      from='base config metrics name store wire' own=topic
      files='src/topic/consumers.rs src/topic/dedupe.rs src/topic/frames.rs src/topic/largest.rs src/topic/log.rs
        src/topic/log/*.rs src/topic/trie.rs'
      ;;
    *) echo "unknown part: $1 (wire, presence, state or topic)"; exit 1 ;;
  esac
}

# A package of the modules $3, with what it takes from the one that is below.
package() {
  local name=$1 below=$2 modules=$3 module path
  rm -rf "${dir:?}/$name"
  mkdir -p "$dir/$name/src"
  for module in $modules; do
    for path in src/"$module" src/"$module".rs; do [ ! -e "$path" ] || cp -rp "$path" "$dir/$name/src/"; done
  done
  {
    for module in $below; do echo "pub use below::$module;"; done
    for module in $modules; do echo "pub mod $module;"; done
  } >"$dir/$name/src/lib.rs"
  {
    printf '[package]\nname = "%s"\nversion = "%s"\nedition = "2024"\n\n[workspace]\n\n' "$name" \
      "$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)"
    printf '[features]\ndurable = ["dep:crc32fast", "dep:redb"]\n\n[lib]\ndoctest = false\n\n[profile.dev]\ndebug = false\n\n'
    sed -n '/^\[dependencies\]/,/^$/p' Cargo.toml | sed '$d'
    [ -z "$below" ] || echo 'below = { path = "../below" }'
  } >"$dir/$name/Cargo.toml"
  cp Cargo.lock "$dir/$name/"
}

package_part() {
  local name=$1
  part "$name"
  package "$name" "$from" "$own"
  case $name in
    # The store within the process has threads, and stands on what only the crate itself sees.
    state)
      rm -r "$dir/state/src/state/store" "$dir/state/src/state/store.rs"
      sed -i -E '/\bstore(;|::)/d' "$dir/state/src/state/mod.rs"
      sed -i 's/0\.\.3_000/0..200/' "$dir/state/src/state/map/tests.rs"
      ;;
    presence) sed -i 's/0\.\.4_000/0..200/' "$dir/presence/src/presence/tests.rs" ;;
    topic)
      sed -i 's/0\.\.200 /0..15 /' "$dir/topic/src/topic/log/tests.rs"
      sed -i 's/for _ in 0\.\.100 /for _ in 0..12 /' "$dir/topic/src/topic/log/marks/tests.rs"
      ;;
  esac
}

test_part() {
  local name=$1 arguments=() file
  part "$name"
  set -f
  for file in $files; do arguments+=(-f "$file"); done
  set +f
  # Exit code 2 says that some survived, 3 that some took too long.
  (cd "$dir/$name" && "$mutants" mutants --in-place --timeout 30 --cap-lints true --colors never --no-times \
    "${arguments[@]}") >"$dir/$name.log" 2>&1 || case $? in
      2 | 3) ;;
      *) tail -n 40 "$dir/$name.log"; exit 1 ;;
    esac
}

names=("$@")
[ $# -gt 0 ] || names=(wire presence state topic)
package below "" "base config metrics name store wire"
for name in "${names[@]}"; do package_part "$name"; done
# What all stand on is built once, before two go on at a time.
(cd "$dir/${names[0]}" && "$cargo" test --no-run) >"$dir/build.log" 2>&1 || { tail -n 40 "$dir/build.log"; exit 1; }
export -f part test_part
export root dir mutants
printf '%s\n' "${names[@]}" | xargs -P 2 -I{} bash -euo pipefail -c 'test_part {}'

# Lines and columns are left out, so that the list outlives other changes.
plain() { sed -E 's/^([^:]+):[0-9]+:[0-9]+: /\1: /' | LC_ALL=C sort; }
failed=0
for name in "${names[@]}"; do
  out=$dir/$name/mutants.out
  count() { wc -l <"$out/$1.txt"; }
  echo "$name: killed $(count caught), timed out $(count timeout), unviable $(count unviable), survived $(count missed)"
  plain <"$out/missed.txt" >"$dir/$name.missed"
  part "$name"
  modules=$(echo "$own" | tr ' ' '|')
  sed -n 's/ -- .*//p' "$list" | grep -E "^src/($modules)\b" | LC_ALL=C sort >"$dir/$name.known" || true
  if LC_ALL=C comm -23 "$dir/$name.missed" "$dir/$name.known" | grep .; then
    echo "$name: these survived; a test is to kill them, or tests/mutants.txt to say why none can"
    failed=1
  fi
  if LC_ALL=C comm -13 "$dir/$name.missed" "$dir/$name.known" | grep .; then
    echo "$name: these are in tests/mutants.txt and do not survive any more"
    failed=1
  fi
done
exit $failed
