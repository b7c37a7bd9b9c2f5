"""Items of whole runs as processes: interrupted and resumed, out of memory, several ranks, NCCL."""

import shutil
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from gpu_checks.common import Check, Context, Ended, completed, epoch_reached, started
from seqtrack.checkpoints.side_files import read_metrics
from seqtrack.errors import STOPPED_EXIT_CODE
from seqtrack.model.cost import cost_of
from seqtrack.model.spec import model_spec
from seqtrack.runtime.metrics_log import WALL_CLOCK_FIELDS


def _demo(context: Context) -> None:
    """Draw the demo's data once."""
    if not (context.work / "data").is_dir():
        completed(context, context.environment(context.work / "none"), "seqtrack", "data", "prepare")


def _same(context: Context, check: Check, what: str, a: Path, b: Path) -> None:
    output = context.work / f"comparison-{what}"
    words = ("verify", str(a), str(b), "-o", str(output))
    ended = completed(context, context.environment(context.work), "seqtrack", *words)
    check.values[what] = ended.last_line
    check.that((ended.code, ended.last_line) == (0, "identical"), f"{what}: {ended.said[-300:]}")


def interrupted(context: Context, check: Check) -> str:
    """A run that is killed, and one that is stopped, each resumed, against one that nobody disturbed."""
    _demo(context)
    keys = {"TRAIN.AMP": "bf16"}
    whole = context.work / "whole"
    first = completed(context, context.environment(whole, keys), "seqtrack", "train")
    check.that(first.code == 0, f"the uninterrupted run ended with {first.code}: {first.last_line}")
    for name, number, expected in (("killed", signal.SIGKILL, -9), ("stopped", signal.SIGTERM, STOPPED_EXIT_CODE)):
        output = context.work / name
        env = context.environment(output, keys)
        with started(context, env, "seqtrack", "train") as child:
            manifest = output / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.json"  # written in the background
            child.until(lambda file=manifest: file.is_file() and epoch_reached(file.parents[1], 2))
            child.signal(number)
            ended = child.end()
        check.values[f"{name} exit code"] = ended.code
        check.that(ended.code == expected, f"{name}: exit code {ended.code}, expected {expected}: {ended.last_line}")
        resumed = completed(context, env, "seqtrack", "train")
        check.that(resumed.code == 0, f"{name}, resumed: exit code {resumed.code}: {resumed.last_line}")
        check.that("guarantee with that checkpoint: bitwise" in resumed.said, f"{name}: the log does not say bitwise")
        _same(context, check, name, whole / "phase_1", output / "phase_1")
    last = read_metrics(whole / "phase_1/logs/metrics.jsonl").records[-1].model_dump()
    check.values["last record"] = {name: value for name, value in last.items() if name not in WALL_CLOCK_FIELDS}
    return f"killed: {check.values['killed']}, stopped: {check.values['stopped']}"


def out_of_memory(context: Context, check: Check) -> str:
    """A run with so little memory that `model.to`, a forward pass, or the optimizer's step fails."""
    _demo(context)
    config = context.config()
    weights = 4 * cost_of(model_spec(config)).parameters
    total = torch.cuda.get_device_properties(0).total_memory if context.is_cuda else 1
    keys = {"MODEL.ENCODER.PRETRAIN_TYPE": "scratch", "TRAIN.NUM_WORKER": 1, "DATA.TRAIN.SAMPLE_PER_EPOCH": 16}
    # One sample's activations take less than the optimizer's two values per weight, so its step is the peak.
    stages = {"to": 0.5, "forward": 1.15, "step": 3.2}
    for stage, times_weights in stages.items():
        output = context.work / f"memory-{stage}"
        name = "demo" if context.small else "seqtrack_b256"
        env = context.environment(output, keys, CONFIG=name, BATCH_SIZE=1)
        fraction = min(1.0, times_weights * weights / total)
        ended = completed(context, env, "out_of_memory", stage, fraction, "train")
        files = [str(one.name) for one in (output / "phase_1" / "checkpoints").glob("*") if one.is_file()]
        check.values[stage] = {"code": ended.code, "last line": ended.last_line, "files": files}
        check.that(ended.code == 1, f"{stage}: exit code {ended.code}: {ended.last_line:.200}")
        check.that("Traceback" not in ended.said, f"{stage}: a traceback")
        check.that("out of" in ended.last_line and "memory" in ended.last_line, f"{stage}: said {ended.last_line:.200}")
        check.that(not files, f"{stage}: left {files}")
    return "; ".join(f"{stage}: exit {check.values[stage]['code']}" for stage in check.values)


def several_ranks(context: Context, check: Check) -> str:
    """Ranks that share the GPU through gloo, stopped and resumed, against the uninterrupted run."""
    _demo(context)
    found = []
    for count in context.pick((2, 3), (2,)):
        whole, cut = context.work / f"whole-{count}", context.work / f"cut-{count}"
        keys = {"TRAIN.AMP": "bf16", "TRAIN.NUM_WORKER": 0}
        codes = [one.code for one in _ranks(context, whole, keys, count, stop=False)]
        check.that(codes == [0] * count, f"{count} ranks ended with {codes}")
        stopped = _ranks(context, cut, keys, count, stop=True)
        codes = [one.code for one in stopped]
        check.that(set(codes) == {STOPPED_EXIT_CODE}, f"{count} ranks, stopped: {codes}: {stopped[0].last_line}")
        codes = [one.code for one in _ranks(context, cut, keys, count, stop=False)]
        check.that(codes == [0] * count, f"{count} ranks, resumed: {codes}")
        _same(context, check, f"{count} ranks", whole / "phase_1", cut / "phase_1")
        found.append(f"{count} ranks: {check.values[f'{count} ranks']}")
        shutil.rmtree(cut)
    keys = {"TRAIN.AMP": "bf16", "TRAIN.NUM_WORKER": 0, "TRAIN.SHARDS": 4, "MODEL.DECODER.DROPOUT": 0.1}
    one, *others = (context.work / f"shards-{count}" for count in (1, *context.pick((2, 3), (2,))))
    for count, output in enumerate((one, *others), start=1):
        codes = [each.code for each in _ranks(context, output, keys, count, stop=False)]
        check.that(codes == [0] * count, f"{count} ranks with shards ended with {codes}")
    for output in others:
        _same(context, check, output.name, one / "phase_1", output / "phase_1")
    return ", ".join([*found, "with shards: the same on one rank"])


def _ranks(context: Context, output: Path, keys: dict[str, object], count: int, *, stop: bool) -> list[Ended]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "LOCAL_RANK": "0"}
    meeting |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    env = {**context.environment(output, keys), **meeting}
    with ExitStack() as stack:
        children = [
            stack.enter_context(started(context, {**env, "RANK": str(rank)}, "rank", "train")) for rank in range(count)
        ]
        if stop:
            children[0].until(lambda: epoch_reached(output / "phase_1", 2))
            children[-1].signal(signal.SIGTERM)
        return [child.end() for child in children]


def nccl_alone(context: Context, check: Check) -> str:
    """Every collective through NCCL in a group of one."""
    began = time.perf_counter()
    ended = completed(context, context.environment(context.work), "alone", context.device)
    seconds = time.perf_counter() - began
    check.values |= {"said": ended.said[-2000:], "seconds": seconds}
    check.that(ended.code == 0 and "done" in ended.said, f"exit code {ended.code}: {ended.said[-300:]}")
    return f"exit code {ended.code} after {seconds:.1f} s"
