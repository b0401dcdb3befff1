#!/usr/bin/env bash
# Installs what the build, the tests and the demo need and this machine lacks; says what and why. Silent if nothing is
# missing. Looks for files and programs, never for package names: what is there from another source counts.
#
#   scripts/deps.sh            install what is missing
#   scripts/deps.sh --print    only print what is missing and the command that would install it (exit code 1 then)
#   scripts/deps.sh --jobs     also install what the tests of jobs over nodes use: Slurm, munge, MPICH and ssh, with their services;
#                              without them those tests are skipped, so that it is no failure if they cannot be had
set -euo pipefail

say() { printf 'deps: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
# Whether one of the patterns, already expanded by the shell, is a file.
any_file() { local path; for path in "$@"; do [[ -e $path ]] && return 0; done; return 1; }

print_only=false jobs=false
case ${1-} in
    '') ;;
    --print) print_only=true ;;
    --jobs) jobs=true ;;
    *) printf 'usage: %s [--print|--jobs]\n' "$0" >&2; exit 2 ;;
esac

has_libfabric() {
    local told=/nonexistent
    if have pkg-config; then told=$(pkg-config --variable=includedir libfabric 2>/dev/null) || told=/nonexistent; fi
    any_file "${LIBFABRIC_INCLUDE_DIR:-/nonexistent}"/rdma/fabric.h /usr/include/rdma/fabric.h "$told"/rdma/fabric.h
}
has_libclang() {
    any_file "${LIBCLANG_PATH:-/nonexistent}" "${LIBCLANG_PATH:-/nonexistent}"/libclang*.so* /usr/lib/llvm*/lib/libclang*.so* \
        /usr/lib64/libclang*.so* /usr/lib64/llvm*/lib*/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib/libclang*.so*
}
has_cc() { have cc && any_file /usr/include/stdio.h /usr/include/*/stdio.h; }
# Users other than root do not look into sbin.
has_iproute() { PATH=$PATH:/usr/sbin:/sbin have ip && PATH=$PATH:/usr/sbin:/sbin have tc; }
has_slurm() { PATH=$PATH:/usr/sbin:/sbin have slurmctld && PATH=$PATH:/usr/sbin:/sbin have slurmd && have srun && have sbatch; }
has_munge() { PATH=$PATH:/usr/sbin:/sbin have munged; }
has_ssh() { have ssh && have ssh-keygen && PATH=$PATH:/usr/sbin:/sbin have sshd; }
has_pip() { have python3 && python3 -m pip --version >/dev/null 2>&1; }

# One row per need: test, why, and its packages for apt-get, dnf and zypper.
needs=(
    "has_cc|a C compiler and the C library's headers link the binary and compile libfabric's inline functions|gcc libc6-dev|gcc glibc-devel|gcc glibc-devel"
    "have pkg-config|pkg-config tells where libfabric's headers are|pkg-config|pkgconf-pkg-config|pkg-config"
    "has_libfabric|libfabric is the network; its headers are needed to build, its library to run|libfabric-dev|libfabric-devel|libfabric-devel"
    "has_libclang|libclang reads libfabric's headers during the build|libclang-dev|clang-devel|clang-devel"
    "have fusermount3|fuse3 mounts for users other than root|fuse3|fuse3|fuse3"
    "has_iproute|ip and tc lay the networks in which failures of nodes are tested|iproute2|iproute iproute-tc|iproute2"
    "have ps|ps shows what a test has left|procps|procps-ng|procps"
    "has_pip|Python and pip install the packages that the demo imports|python3 python3-pip|python3 python3-pip|python3 python3-pip"
)

# For the tests of jobs over nodes, which are skipped where these are missing.
if $jobs; then needs=(
    "has_slurm|a Slurm cluster in namespaces starts jobs in the tests|slurmctld slurmd slurm-client|slurm-slurmctld slurm-slurmd slurm|slurm slurm-node"
    "has_munge|munge lets Slurm's daemons know each other|munge|munge|munge"
    "have mpiexec|an mpiexec starts jobs as in PBS in the tests|mpich|mpich|mpich"
    "has_ssh|ssh starts jobs in the tests|openssh-server openssh-client|openssh-server openssh-clients|openssh"
); fi
# What is asked for beside the rest is wanted, not needed.
die_or_go_on() { if $jobs; then say "$*; going on without"; exit 0; else die "$*"; fi; }

have cargo || die "cargo is missing: install Rust first, see https://rustup.rs"

manager=
for candidate in apt-get dnf zypper; do
    if have "$candidate"; then manager=$candidate; break; fi
done
case $manager in
    dnf) column=3 install=(dnf install -y) ;;
    zypper) column=4 install=(zypper --non-interactive install) ;;
    *) column=2 install=(apt-get install -y --no-install-recommends) ;;
esac

packages=()
for need in "${needs[@]}"; do
    IFS='|' read -r -a row <<<"$need"
    if ! ${row[0]}; then
        say "missing: ${row[$column]} (${row[1]})"
        read -r -a names <<<"${row[$column]}"
        packages+=("${names[@]}")
    fi
done
((${#packages[@]})) || exit 0

root=()
if ((EUID != 0)); then root=(sudo); fi
command_line="${root[*]:+${root[*]} }${install[*]} ${packages[*]}"
if $print_only; then say "run: $command_line"; exit 1; fi
[[ -n $manager ]] || die_or_go_on "neither apt-get nor dnf nor zypper is here; install the equivalents of: ${packages[*]}"
if ((EUID != 0)); then
    have sudo || die_or_go_on "not root, and sudo is missing; let an administrator run: ${command_line#sudo }"
    # Without a terminal nobody can type a password.
    if [[ ! -t 0 ]]; then
        root=(sudo -n)
        sudo -n true 2>/dev/null || die_or_go_on "sudo wants a password and there is no terminal; run: $command_line"
    fi
fi

say "running: $command_line"
if [[ $manager == apt-get ]]; then
    apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get)
    # A fresh image has no package lists; old lists name files that are gone.
    compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || "${apt[@]}" update
    "${apt[@]}" install -y --no-install-recommends "${packages[@]}" </dev/null || {
        say "trying again with fresh package lists"
        "${apt[@]}" update
        "${apt[@]}" install -y --no-install-recommends "${packages[@]}" </dev/null || die_or_go_on "apt-get fails"
    }
else
    "${root[@]}" "${install[@]}" "${packages[@]}" </dev/null || die_or_go_on "$manager fails"
fi

for need in "${needs[@]}"; do
    IFS='|' read -r -a row <<<"$need"
    ${row[0]} || die_or_go_on "still missing after the installation: ${row[$column]} (${row[1]})"
done
