# shellcheck shell=bash
# What the launch and stop scripts with Copper's names share: their letters, in the words of `bornite launch` and
# `bornite stop`. Sourced by them; docs/COPPER.md has the table.

fail() { printf '%s: %s\n' "${0##*/}" "$1" >&2; exit "${2:-1}"; }
note() { printf '%s: %s\n' "${0##*/}" "$1" >&2; }

# The bornite beside the script where it is installed, else that of PATH.
find_bornite() {
    local here
    here=$(dirname -- "$0")
    if [[ -x $here/bornite ]]; then
        bornite=$here/bornite
    else
        bornite=$(command -v bornite) || fail 'bornite is not in PATH; load its module'
    fi
}

# job_directory BASE: where the files of this job are.
job_directory() {
    local job=${PBS_JOBID:-}
    job=${job%%.*}
    job=${job:-${SLURM_JOB_ID:-}}
    [[ -n $job ]] || fail 'this is no job: neither PBS_JOBID nor SLURM_JOB_ID is set'
    printf '%s/%s\n' "${1%/}" "$job"
}

# facility_book NAME: the site's address book, if there is one.
facility_book() {
    local file
    for file in "${facility_address_book:-}" "${COPPER_ROOT:-/nonexistent}/build/$1" \
        "$(dirname -- "$(readlink -f -- "$0")")/$1"; do
        if [[ -n $file && -f $file ]]; then
            printf '%s\n' "$file"
            return
        fi
    done
}

launch_usage() {
    printf 'usage: %s [-l LOG_LEVEL] [-t LOG_TYPE] [-d LOG_BASE] [-T TREES] [-M BYTES] [-E ENOENT_TTL_MS] [-P] [-N TOP_N] [-A]\n' "${0##*/}"
    printf '    [-I SNAPSHOT_INTERVAL_S] [-s SECONDS] [-b CORES] [-F FACILITY_BOOK] [-a facility|discover] [-n NET] [-v MOUNT]\n'
}

# launch_copper BOOK_NAME CORES NET ARGUMENTS…
launch_copper() {
    local book_name=$1 cores=$2 net=$3 option
    shift 3
    local level=0 base=$HOME/copper-logs trees=1 ttl=2000 mount=/tmp/${USER:-$(id -un)}/copper book='' source='' profile=''
    while getopts ':l:t:d:T:M:E:PN:AI:s:b:F:a:n:v:h' option; do
        case $option in
            l) level=$OPTARG ;;
            t) [[ $OPTARG == file ]] || note "-t $OPTARG has no effect: the daemons log to files" ;;
            d) base=$OPTARG ;;
            T) trees=$OPTARG ;;
            M) note "-M $OPTARG has no effect: files of any size are cached" ;;
            E) ttl=$OPTARG ;;
            P | N | A | I) profile+=" -$option${OPTARG:+ $OPTARG}" ;;
            s) note "-s $OPTARG has no effect: the launch returns once every mount answers" ;;
            b) cores=$OPTARG ;;
            F) book=$OPTARG source=${source:-facility} ;;
            a) source=$OPTARG ;;
            n) net=$OPTARG ;;
            v) mount=$OPTARG ;;
            h) launch_usage; exit 0 ;;
            :) fail "-$OPTARG needs a value" 2 ;;
            *) launch_usage >&2; fail "there is no option -$OPTARG" 2 ;;
        esac
        OPTARG=''
    done
    shift $((OPTIND - 1))
    (($# == 0)) || fail "what is $1? Every argument belongs to a letter" 2
    [[ -z $profile ]] || note "${profile# }: no effect, profiles are not written; \`bornite stats\` has the counters"
    case $source in
        facility)
            book=${book:-$(facility_book "$book_name")}
            [[ -n $book ]] || fail "there is no $book_name; name the facility's address book with -F FILE, or ask the nodes with -a discover" 2
            ;;
        discover) book='' ;;
        '')
            book=$(facility_book "$book_name")
            [[ -n $book ]] || note "there is no $book_name: the nodes are asked for their addresses, as with -a discover"
            ;;
        *) fail "-a $source: it must be facility or discover" 2 ;;
    esac
    find_bornite
    local dir
    dir=$(job_directory "$base") || exit
    mkdir -p -- "$dir/logs" "$dir/tables" "$dir/profiling" || fail "no place for the job's files; name another with -d DIRECTORY"
    local words=(--target / --mount "$mount" --output-dir "$dir" --cores "$cores" --net "$net" --log-level "$level")
    # Their book stays when the job ends.
    words+=(--trees "$trees" --enoent-ttl-ms "$ttl" --keep-book)
    if [[ -n $book ]]; then
        words+=(--book facility --address-book "$book")
    else
        words+=(--book discover)
    fi
    exec "$bornite" launch "${words[@]}"
}

# stop_copper ARGUMENTS…
stop_copper() {
    local base=$HOME/copper-logs mount=/tmp/${USER:-$(id -un)}/copper option
    while getopts ':d:v:h' option; do
        case $option in
            d) base=$OPTARG ;;
            v) mount=$OPTARG ;;
            h) printf 'usage: %s [-d LOG_BASE] [-v MOUNT]\n' "${0##*/}"; exit 0 ;;
            :) fail "-$OPTARG needs a value" 2 ;;
            *) fail "there is no option -$OPTARG; usage: ${0##*/} [-d LOG_BASE] [-v MOUNT]" 2 ;;
        esac
    done
    shift $((OPTIND - 1))
    (($# == 0)) || fail "what is $1? Every argument belongs to a letter" 2
    find_bornite
    local dir
    dir=$(job_directory "$base") || exit
    exec "$bornite" stop --output-dir "$dir" -- "$mount"
}
