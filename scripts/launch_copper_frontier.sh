#!/usr/bin/env bash
# Starts the daemons of a job on Frontier (Slurm) with the letters of Copper's script of this name.
set -uo pipefail
# shellcheck source=scripts/copper_job.sh
. "$(dirname -- "$(readlink -f -- "$0")")/copper_job.sh"
launch_copper olcf_frontier_copper_addressbook.txt 1,2 cxi://cxi1 "$@"
