#!/usr/bin/env bash
# Starts the daemons of a job on Aurora (PBS) with the letters of Copper's script of this name.
set -uo pipefail
# shellcheck source=scripts/copper_job.sh
. "$(dirname -- "$(readlink -f -- "$0")")/copper_job.sh"
launch_copper alcf_aurora_copper_addressbook.txt 48,49,50,51 cxi "$@"
