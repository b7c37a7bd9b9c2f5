#!/usr/bin/env bash
# Check everything: scripts/test.sh [--fast | --long] [pytest argument...]
#
#   (nothing)   style, types, shell, Dockerfile, then every test; those that need Docker if an engine answers
#   --fast      without the tests that need Docker and without whole training runs: a few minutes
#   --long      also the long variants, then --fast under each installed Python of 3.10 to 3.12: hours
#
# Creates .venv if needed, as scripts/local.sh does. SEQTRACK_TEST_DATA and SEQTRACK_GOLDENS name folders with real test
# data and reference outputs; without them the tests that need them are skipped. With CI=true a skipped test is a
# failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/environment.sh
. scripts/environment.sh

form=usual
case "${1:-}" in
  --fast | --long) form=${1#--}; shift ;;
  -h | --help) sed -n '2,10s/^# \?//p' scripts/test.sh >&2; exit 0 ;;
esac

make_environment requirements.lock requirements-test.lock
outer_path=$PATH
PATH=$PWD/$venv/bin:$PATH

failed=""
check() { # check NAME COMMAND...: continue after a failure, so that one run shows all of them
  local name=$1 began=$SECONDS
  shift
  if "$@"; then log "$name: passed ($((SECONDS - began)) s)"; else log "$name: FAILED"; failed="$failed $name"; fi
}

static_checks() {
  check ruff ruff check --quiet .
  check format ruff format --quiet --check .
  check mypy mypy --no-error-summary
  check vocabulary python scripts/vocabulary.py
  check shellcheck shellcheck --external-sources scripts/*.sh docker/read-commit .ci/run docker/cloud/*.sh
  check hadolint hadolint Dockerfile
  [ -z "$failed" ]
}
static=""
if [ $# -eq 0 ]; then # next to the tests, which begin with a while on one core
  static_checks &
  static=$!
fi

markers="not long"
[ "$form" = long ] && markers="long or not long"
if [ "$form" = fast ]; then
  markers="not long and not docker and not run"
elif ! timeout 20 docker info >/dev/null 2>&1; then
  log "no Docker engine answers: skipping the tests marked docker"
  [ "${CI:-}" = true ] && { log "in CI this is a failure"; failed="$failed docker"; }
  markers="($markers) and not docker"
fi
# One process more than cores, because one of them mostly waits; at most three, because some tests build the whole
# model, which takes gigabytes.
processes=$(($(nproc) > 1 ? 3 : 0))
check tests python -m pytest -m "$markers" -n "${PROCESSES:-$processes}" --dist loadgroup --no-loadscope-reorder \
  --durations=15 "$@"
[ -z "$static" ] || wait "$static" || failed="$failed static-checks"

# Each Python has its own environment, .venv-3.10 and so on; arguments select the tests there too.
if [ "$form" = long ]; then
  for version in 3.10 3.11 3.12; do
    # pyenv's stubs on the PATH answer for one version only; the others are in its folder.
    names="python$version ${PYENV_ROOT:-$HOME/.pyenv}/versions/$version.*/bin/python"
    if python=$(PATH=$outer_path PYTHON=$names find_python 2>/dev/null); then
      check "python $version" env PATH="$outer_path" PYTHON="$python" VENV=".venv-$version" scripts/test.sh --fast "$@"
    else
      log "python $version: not installed"
    fi
  done
fi

[ -z "$failed" ] || { log "failed:$failed"; exit 1; }
