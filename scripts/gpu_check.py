#!/usr/bin/env python3
"""Check every guarantee under CUDA, on a GPU machine without a network.

    python3 scripts/gpu_check.py --out FOLDER [--extras FOLDER] [--only NAME,NAME] [--budget-s 600]

Each item has its own time limit and ends as ok, FAILED, skipped or over budget; none stops the others. The most
valuable items run first. Each prints one line, and FOLDER/gpu_check.json is rewritten after each, so that a preempted
machine loses nothing. The exit code is 0 unless an item FAILED. `scripts/gpu_check.sh` prepares the extras (reference
outputs, small wheels) on a machine with a network. `--device cpu --small` tests the items themselves.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class OverLimit(Exception):
    """An item took longer than it may."""


def main() -> int:
    """Run the items; 1 if one FAILED."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_check.json")
    parser.add_argument("--extras", type=Path, help="folder that scripts/gpu_check.sh made")
    parser.add_argument("--only", default="", help="names of items, separated by commas")
    parser.add_argument("--budget-s", type=float, default=600.0, help="time for everything")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models and few steps: tries the script itself")
    args = parser.parse_args()
    began = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as folder:
        sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
        missing = _use_extras(args.extras, Path(folder))
        if args.small:  # a tiny model is slower on several threads
            os.environ["OMP_NUM_THREADS"] = "1"
        from gpu_checks.common import Context
        from gpu_checks.items import ITEMS

        wanted = [name for name in args.only.split(",") if name] or [item.name for item in ITEMS]
        if unknown := set(wanted) - {item.name for item in ITEMS}:
            parser.error(f"no such item: {', '.join(sorted(unknown))}; there are {', '.join(i.name for i in ITEMS)}")
        report: dict[str, Any] = {"head": _head(args), "missing_extras": missing, "items": []}
        context = Context(device=args.device, small=args.small, work=Path(folder))
        for item in (item for item in ITEMS if item.name in wanted):
            row = {"name": item.name, "state": "running", "expected": item.expected, "values": {}}
            report["items"].append(row)
            _write(args.out, report)
            started = time.monotonic()
            _run(item, context, row, args.budget_s - (started - began))
            row["seconds"] = round(time.monotonic() - started, 1)
            _write(args.out, report)
            context.forget()
            line = f"{item.name:14} {row['state']:8} {row['seconds']:6.1f} s  {row['figure']}"
            print(f"{line}  [expected: {item.expected}]", flush=True)
    report["head"]["seconds"] = round(time.monotonic() - began, 1)
    report["head"]["clocks_after"] = _nvidia_smi("clocks.sm,clocks.mem,temperature.gpu,power.draw")
    _write(args.out, report)
    return int(any(row["state"] == "FAILED" for row in report["items"]))


def _run(item: Any, context: Any, row: dict[str, Any], left_s: float) -> None:
    """Run an item within its limit and what is left of the time for everything."""
    from gpu_checks.common import Check, Skipped

    check = Check(row["values"])
    try:
        if left_s < item.usual_s * (0.1 if context.small else 1):
            raise OverLimit(f"{left_s:.0f} s are left, about {item.usual_s} are needed")
        with _limit(min(left_s, item.limit_s * (1 if context.is_cuda else 4))):
            figure = item.run(context, check)
        row |= {"state": "FAILED" if check.failures else "ok", "figure": "; ".join([*check.failures, figure])}
    except Skipped as why:
        row |= {"state": f"skipped ({why})", "figure": ""}
    except OverLimit as why:
        row |= {"state": "over budget", "figure": str(why)}
    except Exception as error:  # noqa: BLE001 - one item must not cost the others; its traceback is kept
        row |= {"state": "FAILED", "figure": f"{type(error).__name__}: {error}".splitlines()[0]}
        row["values"]["traceback"] = traceback.format_exc()


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def ring(_number: int, _frame: object) -> None:
        raise OverLimit(f"stopped after its limit of {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _write(folder: Path, report: dict[str, Any]) -> None:
    new = folder / "gpu_check.json.new"
    new.write_text(json.dumps(report, indent=1, default=str))
    new.replace(folder / "gpu_check.json")


def _use_extras(folder: Path | None, work: Path) -> list[str]:
    """Unpack the small wheels that are not installed, for this process and its children; names what is missing."""
    if folder is not None:
        from seqtrack.packages import installed_packages

        installed = installed_packages()
        for wheel in sorted((folder / "wheels").glob("*.whl")):
            if wheel.name.split("-")[0].lower().replace("_", "-") not in installed:
                shutil.unpack_archive(wheel, work / "packages", format="zip")
        sys.path.append(str(work / "packages"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[-1], os.environ.get("PYTHONPATH")]))
        for name, variable in (("goldens", "SEQTRACK_GOLDENS"), ("frames", "SEQTRACK_TEST_DATA")):
            if (folder / name).is_dir():
                os.environ[variable] = str((folder / name).resolve())
    missing = [name for name in ("SEQTRACK_GOLDENS", "SEQTRACK_TEST_DATA") if not os.environ.get(name)]
    modules = ("yacs", "dotenv", "pydantic", "pytest", "tensorboard", "matplotlib", "tqdm", "timm", "cv2")
    missing += [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        print(f"missing: {', '.join(missing)}", flush=True)
    return missing


def _nvidia_smi(query: str) -> str:
    try:
        words = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _head(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from seqtrack.device import allow_deterministic_matmul
    from seqtrack.runtime.environment import source_commit, versions

    head = {
        "device": args.device,
        "small": args.small,
        "commit": source_commit(),
        "platform": platform.platform(),
        "versions": versions(),
        "cuda": torch.version.cuda,
        "clocks_before": _nvidia_smi("clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit"),
        "driver": _nvidia_smi("name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current"),
    }
    if args.device == "cuda":
        allow_deterministic_matmul(torch.device(args.device))
        head |= {
            "gpu": torch.cuda.get_device_name(0),
            "capability": torch.cuda.get_device_capability(0),
            "arch_list": torch.cuda.get_arch_list(),
            "cudnn": torch.backends.cudnn.version(),
            "nccl": str(torch.cuda.nccl.version()),
        }
    print(json.dumps(head), flush=True)
    return head


if __name__ == "__main__":
    sys.exit(main())
