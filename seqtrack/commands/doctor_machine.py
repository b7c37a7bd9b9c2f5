"""The doctor's checks of the machine: driver, GPU, memory, shared memory, cores, disk, clock.

Each takes what it judges as an argument or reads it from the system, and answers with findings. Knows nothing of the
configuration beyond a device name and sizes in bytes.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path

from seqtrack.commands.doctor_findings import Finding, bad, good, note

GIB = 2**30
# The engine's own words when a GPU is asked of it and it has no NVIDIA runtime.
NO_RUNTIME = 'could not select device driver "nvidia" with capabilities: [[gpu]]'
_SHM_WANTED = 512 * 2**20
_MEMORY_WANTED = 4 * GIB
_GPU_MEMORY_WANTED = 8 * GIB
_CLOCK_LIMIT_S = 300.0


def check_driver(device: str, *, nvidia_smi: str = "nvidia-smi") -> Finding:
    """Whether the NVIDIA driver answers. On a CPU machine its absence is only a note."""
    query = [nvidia_smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        found = "; ".join(line.strip() for line in answer.stdout.splitlines() if line.strip())
        failure = (answer.stderr or answer.stdout).strip().splitlines()[:1]
    except OSError:
        answer, found, failure = None, "", ["nvidia-smi is not there"]
    except subprocess.TimeoutExpired:
        answer, found, failure = None, "", ["nvidia-smi does not answer"]
    if answer is not None and answer.returncode == 0 and found:
        return good("driver", found)
    reason = failure[0] if failure else "nvidia-smi lists no GPU"
    advice = (
        f"In a container, start it with --gpus all; should the engine then say '{NO_RUNTIME}', the NVIDIA Container "
        "Toolkit is missing on the host (install nvidia-container-toolkit, then restart Docker). Without a GPU, add "
        "'-f compose.yaml -f compose.cpu.yaml' and train on the CPU"
    )
    if device == "cuda":
        return bad("driver", f"{reason}, and DEVICE=cuda", advice)
    return note("driver", f"{reason}: training runs on the CPU", advice)


def supports(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether a torch built for these architectures ("sm_86", "compute_90") has code for a GPU of this capability.

    Machine code runs on the same major version from its own minor version up; `compute_` code is compiled by the driver
    for any later GPU.
    """
    major, minor = capability
    for name in built_for:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            continue
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return True
        if kind == "compute" and built <= (major, minor):
            return True
    return False


def check_gpus(device: str) -> list[Finding]:
    """Whether this torch can use the GPUs, and how much memory they have left."""
    import torch

    build = f"torch {torch.__version__} for CUDA {torch.version.cuda}"
    if not torch.cuda.is_available():
        if device != "cuda":
            return [note("GPU", f"{build} finds none: training runs on the CPU")]
        advice = (
            "If nvidia-smi lists a GPU, the driver is too old for this CUDA: update it (CUDA 12.1 wants 530 or later, "
            "CUDA 12.8 wants 570 or later), or set DEVICE=cpu"
        )
        return [bad("GPU", f"{build} finds none, and DEVICE=cuda", advice)]
    findings = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)}, compute capability {capability[0]}.{capability[1]}"
        findings.append(judge_gpu(f"GPU {index}", name, capability, torch.cuda.get_arch_list(), build))
        free, total = torch.cuda.mem_get_info(index)
        findings.append(judge_gpu_memory(f"GPU {index} memory", free, total))
    return findings


def judge_gpu(about: str, name: str, capability: tuple[int, int], built_for: Sequence[str], build: str) -> Finding:
    """Whether a GPU is one that the torch build has code for."""
    if supports(capability, built_for):
        return good(about, f"{name}: {build} has code for it")
    newest = max((int("".join(filter(str.isdigit, one)) or 0) for one in built_for), default=0)
    newer = capability[0] * 10 + capability[1] > newest
    advice = (
        "Build the image for newer GPUs: CUDA=cu128 docker compose build"
        if newer
        else "It is too old for this build: use DEVICE=cpu or another GPU"
    )
    return bad(about, f"{name}: {build} has no code for it (built for {', '.join(built_for)})", advice)


def judge_gpu_memory(about: str, free: int, total: int) -> Finding:
    """Whether the default settings fit a GPU's free memory."""
    found = f"{free / GIB:.1f} GiB of {total / GIB:.1f} GiB free"
    if free >= _GPU_MEMORY_WANTED:
        return good(about, found)
    advice = (
        "On a small card use less at a time: BATCH_SIZE=4, TRAIN.ACCUMULATION_STEPS for the same effective batch, "
        "MODEL.ENCODER.USE_CHECKPOINT True and TRAIN.AMP bf16 in OVERRIDES; `seqtrack plan` says what that needs"
    )
    return note(about, found, advice)


def check_memory(*, meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> Finding:
    """Memory this process may still take: the machine's, or what the container's limit leaves."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit = container_limit(cgroup)
    if limit is not None:
        available = min(available, limit - (_number(cgroup / "memory.current") or 0))
    found = f"{available / GIB:.1f} GiB available" + (f", container limit {limit / GIB:.1f} GiB" if limit else "")
    if available >= _MEMORY_WANTED:
        return good("memory", found)
    return bad("memory", found, f"At least {_MEMORY_WANTED // GIB} GiB are wanted: end other programs, raise the limit")


def container_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that this container may have, None without a limit (or without a container)."""
    return _number(cgroup / "memory.max")


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def check_shared_memory(place: Path = Path("/dev/shm")) -> Finding:
    """Loader workers hand batches over here; too little ends in a bus error."""
    if not place.is_dir():
        return bad("shared memory", f"there is no {place}", "Set TRAIN.NUM_WORKER 0 in OVERRIDES")
    size = shutil.disk_usage(place).total
    if size >= _SHM_WANTED:
        return good("shared memory", f"{size / 2**20:.0f} MiB")
    advice = "Loader workers die with a bus error: docker run --shm-size 2g, or TRAIN.NUM_WORKER 0 in OVERRIDES"
    return bad("shared memory", f"only {size / 2**20:.0f} MiB at {place}", advice)


def check_cores() -> Finding:
    """How many cores this process may use."""
    return good("cores", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}")


def check_disk(about: str, folder: Path, needed: int) -> Finding:
    """Whether `needed` bytes fit where `folder` is, or will be made."""
    free = shutil.disk_usage(nearest_folder(folder)).free
    found = f"{free / GIB:.1f} GiB free at {folder}, about {needed / GIB:.1f} GiB needed"
    if free >= needed:
        return good(about, found)
    advice = "Free some, use another disk, or keep fewer checkpoints: TRAIN.KEEP_CHECKPOINTS 3 in OVERRIDES"
    return bad(about, found, advice)


def nearest_folder(place: Path) -> Path:
    """The place itself, or the nearest one above it that exists: where it would be made."""
    return next(one for one in (place, *place.absolute().parents) if one.exists())


def check_clock(now: float, *, server_date: str | None, known_past: float) -> Finding:
    """Whether the clock is right, against a server's Date header, or else against a moment that is surely past.

    Args:
        now: seconds since 1970, by this machine's clock.
        server_date: an HTTP date, if a server was asked.
        known_past: the age of a file that came with the program.
    """
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    advice = "Set the clock (timedatectl set-ntp true): certificates and tokens are refused by a wrong one"
    if server_date is not None:
        off_s = now - parsedate_to_datetime(server_date).timestamp()
        if abs(off_s) > _CLOCK_LIMIT_S:
            return bad(
                "clock", f"{shown}, {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} the Hub's", advice
            )
        return good("clock", f"{shown}, as the Hub's")
    if now < known_past:
        return bad("clock", f"{shown} is before this program was made", advice)
    return good("clock", shown)
