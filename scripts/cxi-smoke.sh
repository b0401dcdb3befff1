#!/usr/bin/env bash
# Tries the fabric on real hardware: two nodes of a job, on Slingshot by default. Nothing else of the tests needs it; what
# it does is explained in docs/OPERATIONS.md. Run it inside an allocation, in a directory that both nodes see.
#
#   scripts/cxi-smoke.sh [--net NET] ROOT_HOST CHILD_HOST
#
# BORNITE is the program (default: target/release/bornite). CONFORMANCE is the built conformance suite (default: cargo runs
# it). ON runs a command on a host, as `$ON HOST COMMAND…` (default: srun in a Slurm job, else ssh; a host that is
# "localhost" is this one).
set -euo pipefail
cd "$(dirname "$0")/.."

usage() { printf 'usage: %s [--net NET] ROOT_HOST CHILD_HOST\n' "$0" >&2; exit 2; }
net=cxi
if [[ ${1-} == --net ]]; then net=${2-}; shift 2 || usage; fi
(($# == 2)) || usage
root=$1 child=$2
BORNITE=$(realpath "${BORNITE:-${CARGO_TARGET_DIR:-target}/release/bornite}")
[[ -x $BORNITE ]] || { printf '%s is missing: run `make build`, or set BORNITE\n' "$BORNITE" >&2; exit 1; }

on() {
    local host=$1
    shift
    if [[ $host == localhost ]]; then "$@"
    elif [[ -n ${ON-} ]]; then $ON "$host" "$@"
    elif [[ -n ${SLURM_JOB_ID-} ]]; then srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" "$@"
    else ssh "$host" "$(printf '%q ' "$@")"
    fi
}
step() { printf '\n==> %s\n' "$*"; }

work=$(mktemp -d "$PWD/smoke-XXXXXX")
clean() {
    on "$child" "$BORNITE" status "$work/child" >/dev/null 2>&1 && on "$child" fusermount3 -u "$work/child" || true
    on "$root" "$BORNITE" status "$work/root" >/dev/null 2>&1 && on "$root" fusermount3 -u "$work/root" || true
    rm -rf "$work"
}
trap clean EXIT
mkdir "$work"/{target,root,child}

for host in "$root" "$child"; do
    step "doctor on $host"
    on "$host" "$BORNITE" doctor --fabric --net "$net"
done

step "conformance suite on $root"
if [[ -n ${CONFORMANCE-} ]]; then
    on "$root" env "BORNITE_TEST_PROVIDER=$net" "$CONFORMANCE" on_the_network_of_the_environment --nocapture
else
    on "$root" env "BORNITE_TEST_PROVIDER=$net" "${CARGO:-cargo}" test --locked --package bornite-fabric --test conformance \
        on_the_network_of_the_environment -- --nocapture
fi

step "address book"
# The first address of the first domain; PID 0 on cxi, as in real books, and a port that is free elsewhere.
address() {
    on "$1" "$BORNITE" doctor --fabric --net "$net" --json | python3 -c '
import json, re, sys
port = sys.argv[1]
fabric = json.load(sys.stdin)["fabric"]
chosen = fabric["choices"][0]
offer = next(offer for offer in fabric["offers"] if offer["provider"] == chosen["provider"])
address = next(d["address"] for d in offer["domains"] if d["name"] == chosen["domain"] and d["address"])
if address.startswith("ofi+cxi://"):
    word = int(address.split("://")[1], 16) & 0xffffffff
    print("ofi+cxi://0x%08x" % (word & ~0x1ff | int(port) % 511))
else:
    print(re.sub(r":0$", ":" + port, address))
' "$2"
}
# On one host the two differ by it: the PID on cxi, the port elsewhere.
if [[ $net == cxi* && $root != "$child" ]]; then ports=(0 0); else ports=(23917 23918); fi
printf 'root %s\nchild %s\n' "$(address "$root" "${ports[0]}")" "$(address "$child" "${ports[1]}")" | tee "$work/book"

step "a tree of two nodes"
head -c 100 /dev/urandom >"$work/target/small"
head -c 1048576 /dev/urandom >"$work/target/chunk"
head -c 41943041 /dev/urandom >"$work/target/large"
for node in root child; do
    host=${!node}
    on "$host" "$BORNITE" mount --net "$net" --address-book "$work/book" --hostname "$node" --target "$work/target" \
        --output-dir "$work/$node-log" --daemon "$work/$node"
done
want=$(cd "$work/target" && sha256sum small chunk large)
got=$(on "$child" bash -c "cd $(printf %q "$work/child") && sha256sum small chunk large")
if [[ $got != "$want" ]]; then
    printf 'WRONG BYTES through the fabric:\n%s\nwanted:\n%s\n' "$got" "$want" >&2
    exit 1
fi
on "$child" "$BORNITE" stats --json "$work/child" | python3 -c '
import json, sys
counters = json.load(sys.stdin)
counters = counters.get("counters", counters)
pulled = next(value for name, value in counters.items() if name.lower().replace("_", "") == "readbytesfromparent")
assert pulled >= 41943041, "only %d bytes came through the fabric" % pulled
print("%d bytes came through the fabric" % pulled)
'
step "all is well"
