#!/usr/bin/env bash
# Start one phase on a machine that has Docker and an NVIDIA driver, without compose:
#   PHASE=1 HF_REPO=me/seqtrack HF_TOKEN_PATH=~/hf_token docker/cloud/run.sh
#
# Settings are the usual variables (docs/configuration.md). The container runs in the background; follow it with
# `docker logs -f seqtrack-phase1`. It uploads while it trains and ends when everything is on the Hub; after a failure
# it is started again, up to five times, and continues where it stopped. GPUS is a number or `all`, as for compose, or
# empty to run without; CUDA_VISIBLE_DEVICES names single ones.
set -euo pipefail

image=${IMAGE:-seqtrack}
phase=${PHASE:-1}
name=${NAME:-seqtrack-phase$phase}
output=$(realpath -m "${OUTPUT_DIR:-output}")
data=$(realpath -m "${DATA_DIR:-data}")
if [ -n "${HF_TOKEN_PATH:-}" ] && ! [ -f "$HF_TOKEN_PATH" ]; then
  echo "HF_TOKEN_PATH=$HF_TOKEN_PATH: no such file; expected one that holds the token" >&2
  exit 2
fi
mkdir -p "$output" "$data"

add_mount() { # add_mount SOURCE TARGET[,OPTION]: a path may have a colon, and quoted also a comma
  options+=(--mount "type=bind,\"source=${1//\"/\"\"}\",target=$2")
}
# --stop-timeout: time for the trainer to save and the uploader to finish; Docker's default is 10 s.
options=(--detach --name "$name" --stop-timeout 150 --shm-size "${SHM_SIZE:-2g}" --restart on-failure:5
  --read-only --tmpfs /tmp --volume seqtrack-cache:/cache --env "PHASE=$phase")
add_mount "$output" /output
add_mount "$data" /data
case ${GPUS-all} in
'') ;;
all | [1-9] | [1-9][0-9]) options+=(--gpus "${GPUS-all}" --ulimit "memlock=${MEMLOCK:--1}") ;;
*)
  echo "GPUS=$GPUS: expected a number, all, or nothing for none; to use certain ones set CUDA_VISIBLE_DEVICES=0,2" >&2
  exit 2
  ;;
esac
if [ -n "${HF_TOKEN_PATH:-}" ]; then
  # A mounted file: everybody could read a value given with --env in `docker inspect`.
  add_mount "$(realpath "$HF_TOKEN_PATH")" /run/secrets/hf_token,readonly
  options+=(--env HF_TOKEN_PATH=/run/secrets/hf_token)
fi
if [ -n "${HF_TOKEN:-}" ]; then
  echo "write the token into a file and name it in HF_TOKEN_PATH: HF_TOKEN would be visible in docker inspect" >&2
  exit 2
fi
for variable in RESUME_EPOCH SEED CONFIG DATASET CLASSES EPOCHS BATCH_SIZE OVERRIDES DEVICE NPROC NNODES NODE_RANK \
  RENDEZVOUS MAX_RESTARTS STOP_AFTER_S HEALTH_STALE_S HF_REPO HF_PREFIX HF_ENDPOINT HF_PRIVATE HF_HUB_DISABLE_XET \
  HF_HUB_OFFLINE HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy SSL_CERT_FILE \
  REQUESTS_CA_BUNDLE CUDA_VISIBLE_DEVICES $(compgen -e UPLOAD_); do
  if [ -n "${!variable:-}" ]; then options+=(--env "$variable"); fi
done
if [ -n "${NETWORK:-}" ]; then options+=(--network "$NETWORK"); fi

# A finished container blocks its name; what it wrote is in the output folder.
docker rm "$name" >/dev/null 2>&1 || true
docker run "${options[@]}" "$image" train || {
  code=$?
  echo "the container did not start. With GPUS=${GPUS-all} this machine needs an NVIDIA driver from 525.60 on (check it with" \
    "nvidia-smi) and the NVIDIA Container Toolkit; GPUS= runs without a GPU" >&2
  exit "$code"
}
echo "follow it:  docker logs -f $name"
echo "stop it:    docker stop $name    (saves first; starting again continues from there)"
