"""What a run's bits depend on: hardware kind, libraries, number of processes and threads.

Two runs with one fingerprint and one configuration are bitwise equal; with another fingerprint they see the same
samples, take the same steps, and differ in the last digits of floating point.
"""

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from seqtrack.checkpoints.side_files import EnvironmentRecord
from seqtrack.runtime.distributed import DistributedContext

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "opencv-python-headless", "safetensors", "huggingface-hub", "yacs",
)  # fmt: skip
# Variables that choose other kernels or another order of sums.
_SWITCHES = (
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "NCCL_ALGO", "NCCL_PROTO", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
)  # fmt: skip
# The reproducibility guarantees: equal bits, or the same samples and steps with other last digits.
BITWISE, SAME_SAMPLES = "bitwise", "same_samples"


def fingerprint(distributed: DistributedContext, *, precision: str, compiled: bool) -> dict[str, Any]:
    """Everything that bitwise reproducibility depends on, as a flat JSON-able table.

    Args:
        precision: what the step computes in: fp32, bf16 or fp16.
        compiled: whether the model goes through torch.compile.
    """
    device = distributed.device
    found: dict[str, Any] = {
        "device": device.type,
        "world_size": distributed.world_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": precision,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "compile": compiled,
        "machine": platform.machine(),
        **{name: os.environ[name] for name in _SWITCHES if name in os.environ},
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "compute_capability": f"{major}.{minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    else:
        # The vector instructions chosen at run time decide the order of the sums, whatever the processor's name.
        found |= {"cpu": _cpu_name(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    return found


def describe_device(device: torch.device) -> str:
    """A GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {_cpu_name()}"


def guarantee(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, list[str]]:
    """The reproducibility guarantee between two runs by their fingerprints, and the reasons if it is not bitwise."""
    differences = [
        f"{key}: {theirs.get(key)!r} then, {ours.get(key)!r} now"
        for key in sorted(set(ours) | set(theirs))
        if ours.get(key) != theirs.get(key)
    ]
    if ours["compile"]:
        differences.append("TRAIN.COMPILE: the compiler measures which kernels are fastest, and may choose others")
    if not ours["deterministic"]:
        differences.append("TRAIN.DETERMINISTIC is off: kernels may add in any order")
    return (SAME_SAMPLES if differences else BITWISE), differences


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def source_commit() -> str:
    """The commit of this code: the image's SOURCE_COMMIT, else that of this source tree, else "unknown".

    An installed package has no commit: a repository around its environment is another project's.
    """
    if commit := os.environ.get("SOURCE_COMMIT"):
        return commit
    if not (_ROOT / ".git").exists() or not (_ROOT / "pyproject.toml").is_file():
        return "unknown"
    try:
        answer = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def lock_digest() -> str:
    """sha256 of requirements.lock next to this code; without that file, of the installed packages' versions."""
    lock = _ROOT / "requirements.lock"
    if lock.is_file():
        return hashlib.sha256(lock.read_bytes()).hexdigest()
    installed = {f"{one.name.lower()}=={one.version}" for one in metadata.distributions()}
    return "installed:" + hashlib.sha256("\n".join(sorted(installed)).encode()).hexdigest()


def environment_record(distributed: DistributedContext, run_fingerprint: dict[str, Any]) -> EnvironmentRecord:
    """The record `environment.json`: code, lock, libraries, machine."""
    device = distributed.device
    gpu_memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return EnvironmentRecord(
        commit=source_commit(),
        lock_sha256=lock_digest(),
        versions=versions(),
        fingerprint=run_fingerprint,
        platform=platform.platform(),
        cpu=_cpu_name(),
        cpu_count=os.cpu_count(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu_memory_bytes=gpu_memory,
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
