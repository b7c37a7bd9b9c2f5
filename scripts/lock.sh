#!/usr/bin/env bash
# Regenerate every lock file from the requirements lists: scripts/lock.sh [--upgrade]
#
# A lock lists every package with its version and the SHA-256 of each file that may be installed for it, for Python
# 3.10 to 3.12 on Linux x86-64. Without --upgrade, locked versions stay and only changes to the lists take effect.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

if [ -n "${1:-}" ] && [ "$1" != --upgrade ]; then
  sed -n '2,5s/^# \?//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
install_uv "$(find_python)" "$scratch" || stop "uv, which makes these locks, could not be installed with pip"

compile() { # compile LIST LOCK [option...]
  local list=$1 lock=$2
  shift 2
  log "$list -> $lock"
  "$scratch/bin/uv" pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header \
    --output-file "$lock" "$@" "$list"
}

compile requirements.in requirements.lock "$@"
compile requirements-test.in requirements-test.lock "$@"
compile requirements.in requirements-cu128.lock --override requirements-cu128.in "$@"
compile requirements-uv.in requirements-uv.lock "$@"
