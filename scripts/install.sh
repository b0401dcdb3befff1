#!/usr/bin/env bash
# Installs the binary, its man pages and completions, and what has Copper's names: scripts/install.sh BINARY PREFIX
set -euo pipefail
(($# == 2)) || { printf 'usage: %s BINARY PREFIX\n' "$0" >&2; exit 2; }
binary=$1 prefix=$2
here=$(dirname -- "$(readlink -f -- "$0")")

install -D -m 755 "$binary" "$prefix/bin/bornite"
for name in cu_fuse cu_fuse_shutdown list_cxi_hsn_thallium; do
    ln -sfn bornite "$prefix/bin/$name"
done
install -D -m 644 "$here/copper_job.sh" "$prefix/share/bornite/copper_job.sh"
for name in {launch,stop}_copper_{aurora,frontier}.sh; do
    install -D -m 755 "$here/$name" "$prefix/share/bornite/$name"
    ln -sfn "../share/bornite/$name" "$prefix/bin/$name"
done
pages=$(mktemp -d)
trap 'rm -rf "$pages"' EXIT
"$binary" man-pages "$pages"
for page in "$pages"/*.1; do
    install -D -m 644 "$page" "$prefix/share/man/man1/$(basename "$page")"
done
completion() {
    "$binary" completions "$1" >"$pages/completion"
    install -D -m 644 "$pages/completion" "$prefix/share/$2"
}
completion bash bash-completion/completions/bornite
completion fish fish/vendor_completions.d/bornite.fish
completion zsh zsh/site-functions/_bornite
printf 'installed bornite below %s\n' "$prefix"
