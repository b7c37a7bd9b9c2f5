"""What a run's bits depend on: hardware kind, libraries, number of threads and, without TRAIN.SHARDS, of processes.

Two runs with one fingerprint and one configuration are bitwise equal; with another fingerprint they see the same
samples, take the same steps, and differ in the last digits of floating point.
"""

import contextlib
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from seqtrack.checkpoints.side_files import EnvironmentRecord, Fingerprint
from seqtrack.packages import installed_packages
from seqtrack.runtime.distributed import DistributedContext

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = "torch torchvision timm numpy opencv-python-headless safetensors huggingface-hub yacs"
# Variables that choose other kernels or another order of sums.
_SWITCHES = (
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "NCCL_ALGO", "NCCL_PROTO", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
)  # fmt: skip


def fingerprint(distributed: DistributedContext, *, precision: str, compiled: bool, shards: int = 0) -> Fingerprint:
    """Everything that bitwise reproducibility depends on.

    Args:
        precision: what a step computes in: fp32, bf16, fp16.
        shards: TRAIN.SHARDS, with which the number of processes does not count. Neither do a GPU's CPU threads, which
            depend on it: they compute no sum.
    """
    device = distributed.device
    found: Fingerprint = {
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
    if shards:
        found["shards"] = shards
        del found["world_size"]
        if device.type == "cuda":
            del found["threads"]
    if device.type == "cuda":
        return found | {
            "gpu": torch.cuda.get_device_name(device),
            "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    # The vector instructions chosen at run time decide the order of the sums, whatever the processor's name.
    return found | {"cpu": _cpu_name(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}


def describe_device(device: torch.device) -> str:
    """A GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {_cpu_name()}"


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a result may depend on."""
    found = {"python": platform.python_version(), **dict.fromkeys(_PACKAGES.split(), "not installed")}
    for name in _PACKAGES.split():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def source_commit() -> str:
    """The commit of this code: the image's SOURCE_COMMIT, else that of this source tree, else "unknown"."""
    found = os.environ.get("SOURCE_COMMIT")
    # An installed package has no commit: a repository around its environment is another project's.
    if not found and (_ROOT / ".git").exists() and (_ROOT / "pyproject.toml").is_file():
        words = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return found or "unknown"


def lock_digest() -> str:
    """sha256 of requirements.lock next to this code; without that file, of the installed packages' versions."""
    if (lock := _ROOT / "requirements.lock").is_file():
        return hashlib.sha256(lock.read_bytes()).hexdigest()
    installed = [f"{name}=={version}" for name, version in installed_packages().items()]
    return "installed:" + hashlib.sha256("\n".join(sorted(installed)).encode()).hexdigest()


def environment_record(distributed: DistributedContext, run_fingerprint: Fingerprint) -> EnvironmentRecord:
    """The record `environment.json`: code, lock, libraries, machine."""
    on_gpu = distributed.device.type == "cuda"
    return EnvironmentRecord(
        commit=source_commit(),
        lock_sha256=lock_digest(),
        versions=versions(),
        fingerprint=run_fingerprint,
        platform=platform.platform(),
        cpu=_cpu_name(),
        cpu_count=os.cpu_count(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu_memory_bytes=torch.cuda.get_device_properties(distributed.device).total_memory if on_gpu else None,
    )


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
