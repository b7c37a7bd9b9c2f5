# shellcheck shell=bash
# Sourced by the other scripts: builds the virtual environment $venv (.venv) from the lock files, or changes nothing.
#
# $venv/lock-digests lists what is installed, one line per lock: "DIGEST FILE". While the lines agree with the lock
# files the environment is kept. It is built under another name and renamed when complete, so an interrupted build
# leaves nothing that looks finished.

# Where this is set, as in many container images, every start compiles torch's sources again, which takes four seconds.
unset PYTHONDONTWRITEBYTECODE

venv=${VENV:-.venv} # a folder in the repository's root

log() { printf '%s\n' "$*" >&2; }
stop() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Print the Python to use: $PYTHON if set, else the first of the usual names that is 3.10 to 3.12 and can make a venv.
find_python() {
  local name found=""
  for name in ${PYTHON:-python3 python3.11 python3.12 python3.10 python}; do
    # The name is not enough: version managers put stubs on the PATH that only print an error.
    if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
        "$name" -c 'import sys; print(sys.executable)'
        return
      fi
      found="$name is a supported Python without 'venv'; on Debian and Ubuntu: sudo apt install python3-venv"
    fi
  done
  stop "${found:-no Python 3.10, 3.11 or 3.12 found${PYTHON:+ at PYTHON=$PYTHON}. Install one (Ubuntu 22.04 has 3.10,
Debian 12 has 3.11, both as 'python3') or name one: PYTHON=/path/to/python3.11 $0 ...}"
}

# install_uv PYTHON FOLDER: a small environment with only uv.
install_uv() {
  "$1" -m venv "$2" &&
    "$2/bin/python" -m pip --quiet --disable-pip-version-check install --require-hashes -r requirements-uv.lock >&2
}

# has_locks LOCK...: whether $venv was completed from exactly these lock files.
has_locks() {
  local lock
  for lock in "$@"; do grep -qxF "$(sha256sum "$lock")" "$venv/lock-digests" 2>/dev/null || return 1; done
}

# report_downloads UV: every 15 s, how much the environment and the installer's cache have grown.
report_downloads() {
  local size first="" began=$SECONDS
  while true; do
    size=$(du --summarize --block-size=1M --total "$venv.new" "$("$1" cache dir)" 2>/dev/null | tail -n 1 | cut -f 1)
    [ -z "$first" ] || log "$((size - first)) of about 5000 MB downloaded and installed after $((SECONDS - began)) s"
    first=${first:-$size}
    sleep 15
  done
}

# install_lock UV LOCK: every package of LOCK, each file checked against its hash; then record the lock's digest.
install_lock() {
  local quiet="" reporter="" status=0
  if [ ! -t 2 ]; then # on a terminal uv draws its own progress bar
    quiet=--quiet
    report_downloads "$1" &
    reporter=$!
  fi
  "$1" pip install $quiet --python "$venv.new/bin/python" --require-hashes --no-deps -r "$2" >&2 || status=$?
  if [ -n "$reporter" ]; then kill "$reporter" && wait "$reporter"; fi 2>/dev/null || true
  if [ "$status" != 0 ]; then exit "$status"; fi
  sha256sum "$2" >>"$venv.new/lock-digests"
}

# make_environment LOCK...: make $venv in the current folder (the repository's root) match these locks.
make_environment() {
  if [ "$(uname -sm)" != "Linux x86_64" ]; then
    stop "this is $(uname -sm); the locked packages exist for Linux x86-64 only. On Windows use WSL2, on a Mac a Linux machine"
  fi
  if has_locks "$@"; then return; fi
  # Two commands started at the same time (training and upload) must not both build it.
  exec 8<requirements.lock
  flock 8
  if ! has_locks "$@"; then build_environment "$@"; fi
  exec 8<&-
}

build_environment() {
  local python tools lock began=$SECONDS
  python=$(find_python)
  log "creating $venv with $python from $* (once, until a lock changes; about 5 GB)"
  rm -rf "$venv.new"
  tools=$(mktemp -d)
  install_uv "$python" "$tools" || stop "uv, which installs the packages, could not be installed with pip"
  "$python" -m venv --without-pip "$venv.new"
  for lock in "$@"; do install_lock "$tools/bin/uv" "$lock"; done
  # The package itself is this folder, so that edits take effect.
  pwd >"$("$venv.new/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/seqtrack.pth"
  # shellcheck disable=SC2016 # expanded when the script runs
  printf '#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/python" -m seqtrack "$@"\n' >"$venv.new/bin/seqtrack"
  chmod +x "$venv.new/bin/seqtrack"
  # Commands such as .venv/bin/pytest contain the path of their Python, which is about to change.
  grep -rlIZF --exclude-dir=__pycache__ "/$venv.new" "$venv.new/bin" | xargs -0r sed -i "s|/${venv//./\\.}\.new|/$venv|g"
  rm -rf "$tools" "$venv.old"
  if [ -e "$venv" ]; then mv "$venv" "$venv.old"; fi
  mv "$venv.new" "$venv"
  rm -rf "$venv.old"
  log "$venv is ready after $((SECONDS - began)) s"
}
