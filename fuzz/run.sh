#!/usr/bin/env bash
# Runs one fuzz target for FUZZ_SECONDS from FUZZ_SEED on, from FUZZ_BIN: what `make fuzz` does with each.
set -euo pipefail
target=$1
mkdir -p "target/fuzz/corpus/$target" target/fuzz/found
log=target/fuzz/$target.log
"$FUZZ_BIN/$target" "target/fuzz/corpus/$target" "fuzz/corpus/$target" -dict=fuzz/words.dict \
  -seed="$FUZZ_SEED" -max_total_time="$FUZZ_SECONDS" -timeout=30 -artifact_prefix="target/fuzz/found/$target-" \
  -print_final_stats=1 >"$log" 2>&1 || { echo "== $target"; tail -n 40 "$log"; exit 255; }
echo "$target: $(awk '/number_of_executed/ { print $2 }' "$log") executions in $FUZZ_SECONDS s"
