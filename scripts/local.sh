#!/usr/bin/env bash
# Run a job without Docker: scripts/local.sh JOB [argument...]
#
#   train-phase1                  train from scratch into ./output/phase_1 (PHASE, EPOCHS, ...: see docs/configuration.md)
#   RESUME_EPOCH=3 ... train-phase2   continue from phase 1's epoch 3 into ./output/phase_2, and compare the two
#   upload [--once]               upload ./output to HF_REPO
#   tensorboard                   live curves at http://127.0.0.1:6006
#   prepare-data, evaluate, verify, audit, report, course, track, plan, doctor, ...: see docs/commands.md;
#                                 `scripts/local.sh JOB --help` explains each
#
# The first call creates .venv from requirements.lock. Settings come from the environment, then from .env if it exists.
# Works from any folder; output goes to the repository's ./output unless OUTPUT_DIR is set.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

case "${1:-}" in
  "" | -h | --help)
    sed -n '2,12s/^# \?//p' "$here/scripts/local.sh" >&2
    [ -n "${1:-}" ] && exit 0
    exit 2
    ;;
esac

# shellcheck source=scripts/environment.sh
. "$here/scripts/environment.sh"
(cd "$here" && make_environment requirements.lock)
export SEQTRACK_COMMAND=${SEQTRACK_COMMAND:-scripts/local.sh}
exec "$here/.venv/bin/python" "$here/docker/entrypoint" --root "$here" "$@"
