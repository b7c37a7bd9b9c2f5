"""Free memory and disk of this machine, for `plan` and `doctor`."""

import os
from pathlib import Path

GIB = 2**30


def free_memory(*, meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, str]:
    """Free bytes of the machine or within the container's limit, and a description."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free, total = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    limit = _number(cgroup / "memory.max")
    if limit is None or limit >= total:
        return free, f"free now of this machine's {total / GIB:.1f} GiB"
    # Cached files count as used, but the kernel frees them on demand.
    used = (_number(cgroup / "memory.current") or 0) - _cached(cgroup / "memory.stat")
    return min(free, limit - used), f"free now of this container's limit of {limit / GIB:.1f} GiB"


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cached(path: Path) -> int:
    try:
        lines = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
    except OSError:
        return 0
    return int(lines.get("inactive_file", 0))


def free_gpu_memory(gpus: int) -> tuple[int, str, int]:
    """Free bytes of the fullest of the first `gpus` GPUs, a description, and its index."""
    import torch  # doctor imports this module before it knows whether torch can be loaded

    measured = [(*torch.cuda.mem_get_info(index), index) for index in range(gpus)]
    free, total, index = min(measured)
    return int(free), f"free now of the {total / GIB:.2f} GiB of {torch.cuda.get_device_name(index)}", index


def nearest_folder(place: Path) -> Path:
    """The folder itself or its nearest existing parent."""
    return next(one for one in (place, *place.absolute().parents) if one.exists())


def free_disk(folder: Path) -> tuple[int, str]:
    """Free bytes on the file system of a folder, and its nearest existing parent."""
    place = nearest_folder(folder.resolve())
    usage = os.statvfs(place)
    return usage.f_bavail * usage.f_frsize, str(place)
