#!/usr/bin/env bash
# Stops the daemons of a job on Aurora (PBS) with the letters of Copper's script of this name.
set -uo pipefail
# shellcheck source=scripts/copper_job.sh
. "$(dirname -- "$(readlink -f -- "$0")")/copper_job.sh"
stop_copper "$@"
