"""`seqtrack doctor`: check this machine and these settings, one line each with what to do; exit code 0 or 1.

Reads the same environment variables as a run, calls the same code, and tries what a run needs; changes nothing. The
token is sent to the Hub and nowhere else, and no line shows it. The device is tried in processes like those of
training, which execute this module and end themselves after two minutes.
"""

import argparse
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from huggingface_hub import HfApi
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from seqtrack.config.environment import Environment, configure, read_token
from seqtrack.config.schema import Config
from seqtrack.errors import Problem, RunError, UserError
from seqtrack.process import end_with_parent
from seqtrack.runtime.launcher import Ending, launch, leave_ending
from seqtrack.uploads.hub import bound_client, classify

OK, NOTE, BAD = "ok", "note", "BAD"  # BAD: the run cannot work, or not well
LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
NO_GPU = (
    'In a container, start it with --gpus all; if Docker then reports \'could not select device driver "nvidia" with '
    "capabilities: [[gpu]]', install nvidia-container-toolkit on the host and restart Docker. Without a GPU, add "
    "'-f compose.yaml -f compose.cpu.yaml' and train on the CPU"
)
NO_TRIAL = "Without code for this GPU: CUDA=cu128 docker compose build (newer ones), DEVICE=cpu (older ones)"
NO_TOKEN = "Create one with write access on the Hub's page settings/tokens and put its file's path into HF_TOKEN_PATH"
# A line of output: what was checked, the level, what was found, and what to do about it.
Finding = tuple[str, str, str, str]


def run(_args: argparse.Namespace) -> int:
    """Print every finding; 1 if any is BAD."""
    bad = 0
    for finding in _findings(os.environ):
        _print(*finding)
        bad += finding[1] == BAD
    print(f"{bad} to fix (marked BAD)" if bad else "everything is in order")
    return min(bad, 1)


def _print(about: str, level: str, found: str, advice: str) -> None:
    print(f"{level:4}  {about}: {found}" + (f". {advice}" if advice else ""), flush=True)


def _findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    yield check_packages()
    try:
        environment, config = configure(environ)
    except UserError as error:
        yield from (("settings", BAD, problem, "See docs/configuration.md") for problem in error.problems)
        return
    dataset, target = ", ".join(environment.dataset) or "(those of the file)", environment.target or "nowhere"
    yield "settings", OK, f"CONFIG={environment.config} DATASET={dataset}, uploads to {target}", ""
    yield check_token(environment, environ)
    folder = environment.output_dir
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if place.is_dir() and os.access(place, os.R_OK | os.W_OK | os.X_OK):
        yield "output folder", OK, str(folder), ""
    else:
        found = f"user {os.geteuid()} may not write to {place} of user {place.stat().st_uid}, or it is no folder"
        yield "output folder", BAD, found, f"sudo chown -R $(id -u):$(id -g) {folder}; in a container leave out --user"
    yield from check_data(environment, config)
    yield from check_device(environment, config)


def check_packages(lock: Path = LOCK) -> Finding:
    """Compare what is installed with the lock next to this code; an installed package has none."""
    there = {str(canonicalize_name(one.name)): one.version.partition("+")[0] for one in metadata.distributions()}
    lines = re.findall(r"^([a-z0-9][^\\\n]*)", lock.read_text(), re.MULTILINE) if lock.is_file() else []
    wanted = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate()]
    wrong = [one for one in wanted if there.get(one.name, "0") not in one.specifier]
    if not wrong:
        return "packages", OK, f"{len(wanted)} as in the lock" if wanted else "no lock to compare them with", ""
    shown = ", ".join(f"{one.name} {there.get(one.name, 'missing')} (expected {one.specifier})" for one in wrong[:5])
    advice = "Only runs with the same packages are equal bit for bit: delete .venv and start scripts/local.sh again"
    return "packages", BAD, f"{len(wrong)} differ: {shown}", advice


def check_token(environment: Environment, environ: Mapping[str, str]) -> Finding:
    """Ask the Hub whose token this is, and whether it may write."""
    if environment.hf_repo is None:
        return "token", NOTE, "HF_REPO is not set: nothing is uploaded, no token is needed", ""
    token = None
    try:
        if (token := read_token(environ)) is None:
            return "token", BAD, "HF_REPO is set, but neither HF_TOKEN_PATH nor HF_TOKEN", NO_TOKEN
        bound_client(read_s=20.0, tries=2)  # which has no time limit of its own
        account = HfApi(endpoint=environment.hf_endpoint, token=token).whoami()
    except UserError as error:
        return "token", BAD, str(error), NO_TOKEN
    except Exception as error:  # noqa: BLE001 - whatever the client raises becomes one line without the token
        return (
            "token",
            BAD,
            classify(error, token=token).line,
            "Check the network, the clock, HF_ENDPOINT and the token",
        )
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    found = f"belongs to {account.get('name', '?')}, role {role or 'unknown'}"
    return ("token", BAD, f"{found}: it may not write", NO_TOKEN) if role == "read" else ("token", OK, found, "")


def check_data(environment: Environment, config: Config) -> Iterator[Finding]:
    """Whether the training data opens, counted as a run counts it. Demo data is not drawn for this."""
    from seqtrack.training.build import open_sources  # deferred: wrong packages may keep torch from loading

    logging.getLogger("seqtrack.data").setLevel(logging.ERROR)
    demo = environment.data_dir / "demo"
    try:
        if "DEMO" in config.DATA.TRAIN.DATASETS_NAME and not demo.is_dir():
            yield "data", NOTE, f"demo: synthetic, drawn at first use into {demo} (45 MB)", ""
            return
        for one in open_sources(config, environment.data_dir):
            frames = sum(sequence.num_frames for sequence in one.sequences)
            yield "data", OK, f"{one.name}: {len(one.sequences)} training sequences, {frames:,} frames", ""
    except UserError as error:
        advice = "`seqtrack data check` lists everything; `seqtrack data download` fetches classes of LaSOT"
        yield from (("data", BAD, problem, advice) for problem in error.problems[:5])


def check_device(environment: Environment, config: Config, *, limit_s: float = 120.0) -> Iterator[Finding]:
    """Versions, memory and disk by `plan`'s numbers, and a trial of what a run with these settings computes."""
    import torch  # deferred: as above

    from seqtrack.commands.plan import GIB, Plan, find_machine  # as above
    from seqtrack.device import is_emulated  # as above

    shared = f"{shutil.disk_usage('/dev/shm').free / GIB:.1f} GiB free in /dev/shm"
    cuda = torch.version.cuda or "none"
    yield "versions", OK, f"Python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {cuda}, {shared}", ""
    if smi := shutil.which("nvidia-smi"):
        words = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        yield "driver", BAD if answer.returncode else OK, "; ".join(answer.stdout.splitlines()), ""
    try:
        plan = Plan(config, machine := find_machine(environment))
    except UserError as error:
        yield from (("device", BAD, problem, NO_GPU) for problem in error.problems)
        return
    missing = plan.device == "cpu" and environment.device == "auto"
    yield "device", NOTE if missing else OK, machine.gpu or f"CPU (DEVICE={environment.device})", NO_GPU * missing
    emulated = is_emulated(plan.precision, machine.capability)
    advice = "The device emulates bf16, slower than float32: use TRAIN.AMP auto" * emulated
    yield "precision", BAD if emulated else OK, f"TRAIN.AMP {config.TRAIN.AMP} is {plan.precision} here", advice
    yield from ((problem.code.removeprefix("plan."), BAD, problem, "") for problem in plan.problems)
    if not plan.problems:
        memory, disk = plan.memory_needed / GIB, plan.disk_needed / GIB
        yield "memory", OK, f"{memory:.1f} GiB of {machine.memory / GIB:.1f} GiB ({machine.memory_from}) needed", ""
        yield "disk", OK, f"{disk:.1f} GiB of {machine.disk / GIB:.1f} GiB needed", ""
    work = [plan.device, machine.processes, plan.precision, plan.spec.encoder_tokens, limit_s]
    try:
        launch([sys.executable, "-m", __name__, json.dumps(work)], machine.processes, Environment())
    except (RunError, UserError) as error:
        found = f"no answer within {limit_s:.0f} s" if "SIGALRM" in str(error) else str(error)
        yield "trial", BAD, found, NO_TRIAL


def _trial(name: str, processes: int, precision: str, tokens: int, limit_s: float) -> NoReturn:
    """One process of the trial: an attention with its gradient, and a sum over all processes."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # its signal ends this process
    end_with_parent(signal.SIGKILL)
    import torch  # deferred: as above

    from seqtrack.device import DTYPES  # as above
    from seqtrack.runtime.distributed import end_process, join  # as above

    ending = Ending(0)
    try:
        distributed = join(name)
        dtype = DTYPES[precision] or torch.float32
        x = torch.randn(1, 2, tokens, 64, device=distributed.device, dtype=dtype, requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()  # type: ignore[no-untyped-call]
        total = float(distributed.sum_in_place(torch.ones(1, device=distributed.device)))
        if x.grad is None or not bool(x.grad.isfinite().all()) or total != processes:
            raise RuntimeError(f"a gradient in {precision} is not finite, or {total:g} is not the sum of {processes}")
        if distributed.is_main:
            _print("trial", OK, f"attention of {tokens} tokens in {precision}, a sum over {processes} processes", "")
    except Exception as error:  # noqa: BLE001 - whatever fails becomes one line
        ending = Ending(1, [Problem(f"{type(error).__name__}: {str(error).strip()}".splitlines()[0], "doctor.trial")])
    leave_ending(ending)
    end_process(ending.code)


if __name__ == "__main__":
    _trial(*json.loads(sys.argv[1]))
