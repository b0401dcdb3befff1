#!/usr/bin/env bash
# Runs all tests of the workspace and ends on what was skipped, and why, and on one line "N passed, N failed".
# The exit code is cargo's. Tests use the dev profile: overflow and debug assertions are on, and clippy and doc share it,
# so nothing is built twice.
#
# A test that cannot run here prints "skipped: REASON" on a line of its own and passes, or is marked #[ignore = "reason"].
#
#   scripts/test.sh            all tests but those marked #[ignore]
#   scripts/test.sh --soak     only those, with new generated cases each time
#   scripts/test.sh --strict   the end-to-end tests with strict daemons (docs/OPERATIONS.md): BORNITE_STRICT is the seed, or 1
set -euo pipefail
cd "$(dirname "$0")/.."

select=()
profile=()
what=(--workspace)
case ${1-} in
    '') ;;
    --soak)
        select=(--ignored)
        # Thousands of cases: optimized, but with the assertions and overflow checks of the dev profile.
        profile=(--release)
        export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
        export CARGO_PROFILE_RELEASE_LTO=off
        # Beside the release build, which it must not replace.
        export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/soak
        ;;
    --strict)
        export BORNITE_STRICT=${BORNITE_STRICT:-1}
        what=(--package bornite)
        # Those that mount say so in one of these words.
        for file in $(grep -lE 'needs_fuse!|can_mount' tests/*.rs tests/*/main.rs); do
            name=${file#tests/}
            name=${name%/main.rs}
            what+=(--test "${name%.rs}")
        done
        ;;
    *) printf 'usage: %s [--soak|--strict]\n' "$0" >&2; exit 2 ;;
esac

# Generated cases are the same in every run, so that a failure is the change's; the long runs look for new ones.
if [[ ${1-} != --soak ]]; then
    export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-1}
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# The log has the output of passed tests, for the reasons of skipped ones; the terminal has not.
code=0
"${CARGO:-cargo}" test "${what[@]}" --locked --no-fail-fast ${profile[@]+"${profile[@]}"} -- --show-output ${select[@]+"${select[@]}"} \
    </dev/null 2>&1 | tee "$log" | awk '
        /^successes:$/ { quiet = 1 }
        /^(failures:|test result:)/ { quiet = 0 }
        !quiet { print; fflush() }
    ' || code=$?

skipped=$(awk '
    # Captured output comes in blocks that name their test; what went past the capture names it itself.
    /^---- .* stdout ----$/ { test = $2 ": " }
    /^test result:/ { test = "" }
    /^test .* \.\.\. ignored, / { print "SKIPPED: " $2 ": " substr($0, index($0, " ... ignored, ") + 14) }
    tolower($0) ~ /^skipped/ { reason = substr($0, 8); sub(/^:? */, "", reason); print "SKIPPED: " test reason }
' "$log")
if [[ -n $skipped ]]; then
    printf '\n%s\n' "$skipped"
fi
if ((code != 0)); then
    printf '\ncargo test failed (exit code %d)\n' "$code"
fi
awk '/^test result:/ { passed += $4; failed += $6 } END { printf "\n%d passed, %d failed\n", passed, failed }' "$log"
exit "$code"
