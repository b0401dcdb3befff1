#!/usr/bin/env bash
# Runs every fuzz target for its share of the time, over the kept inputs (fuzz/corpus) and those that earlier runs on this
# machine have found (below cargo's target directory). Ends with one line; the exit code is 1 if a target failed, and the
# line before it is the command that reproduces it. Skips, and says why, where the fuzzer cannot run.
#
#   scripts/fuzz.sh [SECONDS=60] [TARGET…]     SECONDS in total, for the named targets or for all
#
# libFuzzer comes with the crate libfuzzer-sys and is compiled by the C++ compiler. Its instrumentation is an LLVM pass that
# a stable rustc has as well, so no other toolchain is needed; only the sanitizers would need one, and the code under test
# is safe code whose mistakes are panics.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { printf 'SKIPPED: fuzzing: %s\n' "$*"; exit 0; }

seconds=${1:-60}
[[ $seconds =~ ^[0-9]+$ ]] && ((seconds > 0)) || { printf 'usage: %s [SECONDS] [TARGET…]\n' "$0" >&2; exit 2; }
shift $(($# > 0))
targets=("$@")
if ((${#targets[@]} == 0)); then
    for file in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi
share=$(((seconds + ${#targets[@]} - 1) / ${#targets[@]}))

[[ $(uname -s) == Linux ]] || skip "libFuzzer is set up for Linux only"
command -v c++ >/dev/null || skip "libFuzzer needs a C++ compiler: install g++"
cargo=${CARGO:-cargo}
if ! "$cargo" fuzz --version >/dev/null 2>&1; then
    printf 'fuzz: cargo-fuzz is missing, installing it: cargo install --locked cargo-fuzz\n' >&2
    "$cargo" install --locked cargo-fuzz </dev/null || skip "cargo-fuzz cannot be installed"
fi
"$cargo" fetch --quiet --manifest-path fuzz/Cargo.toml </dev/null || skip "the crates of fuzz/ cannot be fetched"

kept=${CARGO_TARGET_DIR:-target}/fuzz-found
mkdir -p "$kept"
kept=$(cd "$kept" && pwd)
# cargo-fuzz would build into fuzz/target, and its instrumented build must not replace the workspace's.
CARGO_TARGET_DIR=$kept/build
export CARGO_TARGET_DIR
host=$(rustc -vV | sed -n 's/^host: //p')

# The sanitizer needs a nightly compiler, the rest does not.
"$cargo" fuzz build --sanitizer none </dev/null
failed=()
for target in "${targets[@]}"; do
    mkdir -p "$kept/$target" "$kept/artifacts/$target"
    printf '==> fuzz %s for %s s\n' "$target" "$share"
    log=$kept/$target.log
    if ! "$kept/build/$host/release/$target" -max_total_time="$share" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$kept/artifacts/$target/" "$kept/$target" "fuzz/corpus/$target" </dev/null >"$log" 2>&1; then
        failed+=("$target")
        grep -v '^#' "$log" | tail -n 40
        printf 'reproduce: %s %s\n' "$kept/build/$host/release/$target" "$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)"
    fi
    sed -n 's/^stat::number_of_executed_units: */    inputs tried: /p' "$log"
done
if ((${#failed[@]})); then
    printf 'fuzz: %s of %s targets failed: %s\n' "${#failed[@]}" "${#targets[@]}" "${failed[*]}"
    exit 1
fi
printf 'fuzz: %s targets ran for %s s each and hold\n' "${#targets[@]}" "$share"
