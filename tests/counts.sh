#!/usr/bin/env bash
# Counts the instructions of the hot paths (benches/counts.rs) under callgrind and compares them with
# benches/baseline.txt: more than the tolerance allows fail, fewer are said. UPDATE_COUNTS=1 writes it anew. Another compiler, libc or processor counts otherwise: the first lines of the
# baseline say what it is of, and elsewhere nothing is compared.
set -euo pipefail
cd "$(dirname "$0")/.."
baseline=benches/baseline.txt
dir=$PWD/target/counts
update=${UPDATE_COUNTS:-}

environment() {
  rustc --version
  getconf GNU_LIBC_VERSION
  valgrind --version
  # What picks a way to copy and to compare memory, of all that valgrind knows.
  echo "$(uname -m)$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo | grep -oE ' (sse4_2|avx|avx2|erms)\b' | sort | tr -d '\n')"
}

mkdir -p "$dir"
environment | sed 's/^/# /' >"$dir/environment"
if [ -z "$update" ] && ! grep '^#' "$baseline" | cmp -s - "$dir/environment"; then
  echo "counts: not compared, the baseline is of $(grep '^#' "$baseline" | tr -d '#\n' | sed 's/^ //')"
  exit 0
fi

# A thread for each of 1,000 connections, and those of the relay. The bench's own thread does not count while it is
# in `deliver`.
rm -f "$dir"/profile*
"${CARGO:-cargo}" bench --locked --bench counts --config "target.'cfg(unix)'.runner = [
  'valgrind', '--tool=callgrind', '--max-threads=1200', '--toggle-collect=counts::deliver', '--collect-atstart=yes',
  '--dump-before=counts::counting_begins', '--dump-before=counts::counting_ends', '--combine-dumps=yes',
  '--callgrind-out-file=$dir/profile', '--log-file=$dir/log']" >"$dir/names" ||
  { cat "$dir/log"; exit 1; }

# The profile has a part for each dump: those of `counting_ends` are what the paths took, in their order.
awk '
  NR == FNR { names[++count] = $1; times[count] = $2; next }
  /^part: / { ends = 0 }
  /^desc: Trigger: --dump-before=counts::counting_ends/ { ends = 1 }
  /^summary: / && ends { printf "%s %.1f\n", names[++done], $2 / times[done] }
  END { exit done != count || !count }
' "$dir/names" "$dir/profile" >"$dir/counts" || { echo "counts: not every path was counted"; exit 1; }

if [ -n "$update" ]; then
  { cat "$dir/environment"; awk '{ print $1, $2, ($1 ~ /^deliver/ ? 5 : 3) }' "$dir/counts"; } >"$baseline"
  echo "counts: $baseline is new"
fi

awk '
  NR == FNR { if (!/^#/) { old[$1] = $2; tolerance[$1] = $3 } next }
  FNR == 1 { printf "%-18s %12s %12s %8s\n", "instructions", "baseline", "now", "change" }
  {
    seen[$1] = 1
    if (!($1 in old)) { print $1 ": not in the baseline"; bad = 1; next }
    change = ($2 / old[$1] - 1) * 100
    verdict = change > tolerance[$1] ? "  slower: allowed are " tolerance[$1] " %" : \
      change < -tolerance[$1] ? "  better: UPDATE_COUNTS=1 make counts" : ""
    if (verdict ~ /slower/) bad = 1
    printf "%-18s %12.1f %12.1f %+7.2f%%%s\n", $1, old[$1], $2, change, verdict
  }
  END {
    for (name in old) if (!(name in seen)) { print name ": in the baseline only"; bad = 1 }
    exit bad
  }
' "$baseline" "$dir/counts"
