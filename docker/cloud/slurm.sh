#!/usr/bin/env bash
# Slurm with Apptainer: sbatch docker/cloud/slurm.sh
#
# Once, on a machine with Docker or access to the registry:  apptainer build seqtrack.sif docker-daemon://seqtrack:latest
# Two minutes before its time limit the job is signalled, saves, exits with 75, and is queued again.
#SBATCH --job-name=seqtrack
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=24G
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=seqtrack-%j.log
set -uo pipefail

folder=${SLURM_SUBMIT_DIR:-$PWD}
case "$folder${HF_TOKEN_PATH:-}" in
*[,:\\]*)
  echo "Apptainer cannot mount a path with a comma, a colon or a backslash: $folder ${HF_TOKEN_PATH:-}" >&2
  exit 2
  ;;
esac
if [ -n "${HF_TOKEN_PATH:-}" ] && ! [ -f "$HF_TOKEN_PATH" ]; then
  echo "HF_TOKEN_PATH=$HF_TOKEN_PATH: no such file; expected one that holds the token" >&2
  exit 2
fi
mkdir -p "$folder/output" "$folder/data" "$folder/cache"
export APPTAINERENV_PHASE=${PHASE:-1} APPTAINERENV_OUTPUT_DIR=/output APPTAINERENV_DATA_DIR=/data
# Apptainer only warns where there is no GPU; so training is refused (exit code 2) instead of using the CPU.
export APPTAINERENV_DEVICE=cuda
for variable in RESUME_EPOCH SEED CONFIG DATASET CLASSES EPOCHS BATCH_SIZE OVERRIDES DEVICE NPROC NNODES NODE_RANK \
  RENDEZVOUS MAX_RESTARTS STOP_AFTER_S HEALTH_STALE_S HF_REPO HF_PREFIX HF_TOKEN HF_ENDPOINT HF_PRIVATE \
  HF_HUB_DISABLE_XET HF_HUB_OFFLINE HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy \
  SSL_CERT_FILE REQUESTS_CA_BUNDLE CUDA_VISIBLE_DEVICES $(compgen -e UPLOAD_); do
  if [ -n "${!variable:-}" ]; then export "APPTAINERENV_$variable=${!variable}"; fi
done
binds="$folder/output:/output,$folder/data:/data,$folder/cache:/cache"
if [ -n "${HF_TOKEN_PATH:-}" ]; then
  binds="$binds,$HF_TOKEN_PATH:/run/hf_token:ro"
  export APPTAINERENV_HF_TOKEN_PATH=/run/hf_token
fi

# A signal ends bash's `wait` with a code that is not the child's, and several signals can make bash lose the child's own.
# So one signal is forwarded, further ones are ignored, and the code is read after the child has ended.
child="" signalled=""
# shellcheck disable=SC2329  # a trap calls it
hand_on() {
  signalled=1
  if [ -n "$child" ]; then
    trap '' TERM INT
    kill -TERM "$child" 2>/dev/null
  fi
}
trap hand_on TERM INT
# Apptainer runs as the user who submitted, so the entrypoint changes neither user nor owners.
apptainer run --nv --containall --bind "$binds" "${SIF:-$folder/seqtrack.sif}" train &
child=$!
if [ -n "$signalled" ]; then kill -TERM "$child" 2>/dev/null; fi # it arrived before the child was started
wait "$child"
while kill -0 "$child" 2>/dev/null; do wait "$child"; done
trap '' TERM INT
wait "$child"
code=$?
if [ "$code" = 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
