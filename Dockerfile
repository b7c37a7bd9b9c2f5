# One image for training, uploading and evaluating, on the small CUDA base: torch's packages contain cuDNN, cuBLAS and
# NCCL. Machines without a GPU use the same image.
#
#   docker build -t seqtrack .                          torch 2.4.1 with CUDA 12.1 (GPUs up to Hopper)
#   docker build -t seqtrack --build-arg CUDA=cu128 .   torch 2.9.1 with CUDA 12.8 (Blackwell: RTX 50, B200)
#
# Tags of CUDA images are withdrawn in time. A digest stays: --build-arg BASE_CU121=nvidia/cuda@sha256:... By the build logs
# of others, cu121's is 457a4076c56025f51217bff647ca631c7880ad3dbf546b03728ba98297ebbc22; it was not tried here.
# There is deliberately no `# syntax=` line: it makes every build ask a registry, and the engine's own front end supports
# everything used here.
ARG CUDA=cu121
ARG BASE_CU121=nvidia/cuda:12.1.1-base-ubuntu22.04
ARG BASE_CU128=nvidia/cuda:12.8.1-base-ubuntu22.04

FROM ${BASE_CU121} AS base-cu121
FROM ${BASE_CU128} AS base-cu128
# hadolint ignore=DL3006
FROM base-${CUDA} AS system
# Python is the system's: 3.10 on Ubuntu 22.04. Its version is not pinned: the base image determines it.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/log/apt /var/log/dpkg.log /var/cache/debconf

# The installer has its own stage and is not part of the image.
FROM system AS installer
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv
COPY requirements-uv.lock /
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /uv && /uv/bin/pip install --quiet --require-hashes -r /requirements-uv.lock

FROM system AS packages
ARG CUDA
# Installed in the final stage, with the installer and its downloads mounted for this step only: copying five gigabytes
# from another stage would double the build's time and disk usage for the same result.
# --compile-bytecode: the file system may be read-only later, and compiling torch at each start takes ten seconds.
RUN --mount=type=bind,from=installer,source=/uv,target=/uv \
    --mount=type=bind,source=requirements.lock,target=/locks/requirements-cu121.lock \
    --mount=type=bind,source=requirements-cu128.lock,target=/locks/requirements-cu128.lock \
    --mount=type=cache,target=/root/.cache/uv \
    /uv/bin/uv venv --quiet --python /usr/bin/python3 /opt/venv \
    && UV_LINK_MODE=copy /uv/bin/uv pip install --quiet --python /opt/venv/bin/python --require-hashes --no-deps \
    --compile-bytecode -r "/locks/requirements-${CUDA}.lock"

FROM packages AS program
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The container starts as root only to switch to the owner of the mounted output folder (docker/entrypoint). Unmounted
# folders and new volumes take their owner from here, so that without any mount it is this user.
RUN useradd --uid 1000 --create-home --shell /usr/sbin/nologin seqtrack \
    && install -d -o seqtrack -g seqtrack /output /data /cache
WORKDIR /app
COPY requirements*.in requirements*.lock pyproject.toml LICENSE README.md ./
COPY docker/entrypoint docker/healthcheck docker/
COPY seqtrack seqtrack
ARG CUDA
# A run records the file of this name as its lock.
RUN if [ "${CUDA}" != cu121 ]; then cp "requirements-${CUDA}.lock" requirements.lock; fi \
    && python -m compileall -q seqtrack
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=20s --start-period=10m --retries=3 CMD ["/opt/venv/bin/python", "/app/docker/healthcheck"]
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/venv/bin/python", "/app/docker/entrypoint", "--in-image"]
CMD ["train"]

# `docker build --target test -t seqtrack:test . && docker run --rm seqtrack:test` runs the tests inside the image.
FROM program AS test
RUN --mount=type=bind,from=installer,source=/uv,target=/uv \
    --mount=type=bind,source=requirements-test.lock,target=/locks/requirements-test.lock \
    --mount=type=cache,target=/root/.cache/uv \
    UV_LINK_MODE=copy /uv/bin/uv pip install --quiet --python /opt/venv/bin/python --require-hashes --no-deps \
    -r /locks/requirements-test.lock
COPY . .
CMD ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]

FROM program AS image
ARG CUDA
ARG COMMIT=unknown
ARG LOCK_DIGEST=unknown
LABEL org.opencontainers.image.title="seqtrack" \
      org.opencontainers.image.description="A reproducible training system for the SeqTrack tracker" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${COMMIT}" \
      seqtrack.cuda="${CUDA}" \
      seqtrack.lock.sha256="${LOCK_DIGEST}"
# Without the argument (`docker compose build`), the commit is read from the context's .git.
RUN --mount=type=bind,target=/context \
    if [ "${COMMIT}" != unknown ]; then echo "${COMMIT}" >.commit; else \
    sh /context/docker/read-commit /context/.git >.commit; fi
