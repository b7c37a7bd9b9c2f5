#!/usr/bin/env bash
# Prepare the extras of scripts/gpu_check.py on a machine with a network: scripts/gpu_check.sh FOLDER [PYTHON]
#
# FOLDER receives what a GPU machine without a network needs in addition to a checkout, Python 3.12 and torch 2.11: the
# reference outputs (from SEQTRACK_GOLDENS) and small packages, as wheels. Copy it to that machine, then:
#
#   python3 scripts/gpu_check.py --out OUT --extras FOLDER
#
# PYTHON is any Python with pip; the packages are those for Python 3.12 on Linux in any case. It fails if the folder is
# larger than 64 MiB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 1 ] && [ "$1" != --help ] && [ "$1" != -h ] || {
  sed -n '2,11s/^# \?//p' scripts/gpu_check.sh >&2
  exit 2
}
folder=$1 python=${2:-python3}
mkdir -p "$folder/wheels" "$folder/goldens"

# torch, torchvision, timm, NumPy, OpenCV, safetensors and huggingface_hub are installed there, with their requirements.
fetch() {
  "$python" -m pip --quiet --disable-pip-version-check download --dest "$folder/wheels" \
    --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 --platform any "$@"
}
fetch pydantic jinja2 markdown-it-py pytest httpx2
fetch --no-deps yacs turbojpeg python-dotenv tqdm pyyaml \
  tensorboard absl-py protobuf matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six

if [ -d "${SEQTRACK_GOLDENS:-}" ]; then
  cp "$SEQTRACK_GOLDENS"/*.npz "$SEQTRACK_GOLDENS"/*.json "$folder/goldens/"
else
  echo "SEQTRACK_GOLDENS names no folder: the items golden and tracker will have no reference outputs" >&2
fi
size=$(du -sm "$folder" | cut -f1)
[ "$size" -le 64 ] || {
  echo "error: $folder is $size MiB, more than 64" >&2
  exit 1
}
echo "$folder: $size MiB" >&2
