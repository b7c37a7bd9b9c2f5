"""Code of child processes. The process that forks them imports it, so nothing may touch the GPU at import."""

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

import seqtrack.commands.train
import seqtrack.reports.plots
import seqtrack.train  # noqa: F401 - imported once, before the processes are forked
from gpu_checks.common import Context, Trainer, as_bytes
from seqtrack.cli import main
from seqtrack.runtime.distributed import DistributedContext, Gradients


def become(task: str, arguments: list[str], env: dict[str, str], log: str) -> None:
    """Take the environment, write to the log, and do the task."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(tempfile.gettempdir())
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    sys.exit(TASKS[task](*arguments))


def rank_of_gloo(*words: str) -> int:
    """A rank of a run whose ranks share one GPU, which NCCL refuses: gloo exchanges its tensors."""
    begin = dist.init_process_group
    with mock.patch.object(dist, "init_process_group", lambda _backend, **rest: begin("gloo", **rest)):
        return main(words)


def out_of_memory(stage: str, fraction: str, *words: str) -> int:
    """A command with so little of the GPU's memory that `stage` fails; without a GPU that stage raises the same."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(float(fraction))
        return main(words)

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    places = {"to": "torch.nn.Module.to", "forward": "seqtrack.model.seqtrack.SeqTrack.forward"}
    with mock.patch(places.get(stage, "torch.optim.AdamW.step"), fail):
        return main(words)


def digest_after(device: str, size: str, steps: str, batch: str) -> str:
    """sha256 over every tensor of the training state after some real bf16 steps from one seed."""
    context = Context(device, size == "small", Path())
    trainer = Trainer(context, {"TRAIN.AMP": "bf16", "MODEL.DECODER.DROPOUT": 0.1}, batch=int(batch))
    trainer.steps(int(steps))
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.tensors().items()):
        digest.update(name.encode() + as_bytes(tensor)[-1])
    return digest.hexdigest()


def alone_in_a_group(device: str) -> int:
    """Every collective of a run in a group of one process, through the run's own code."""

    class One(int):
        """1, but not for the short cuts that a run of one process takes."""

        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            return False

        def __gt__(self, other: object) -> bool:
            return True

    where = torch.device(device, 0) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(where)
    with tempfile.NamedTemporaryFile() as file:
        store = dist.FileStore(file.name, 1)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
        distributed = DistributedContext(0, One(1), where)
        assert distributed.sum_in_place(torch.tensor([1.5, 2.0], device=where)).tolist() == [1.5, 2.0]
        assert distributed.gather({"a": 1}) == [{"a": 1}]
        assert distributed.broadcast_object("b") == "b"
        dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)
        sent = {str(dtype): torch.ones(3, dtype=dtype) for dtype in dtypes}
        received = distributed.broadcast(sent)
        assert all(torch.equal(sent[name], received[name]) for name in sent)
        model = nn.Linear(4, 4).to(where)
        gradients = Gradients(model, distributed)
        optimizer = torch.optim.AdamW(model.parameters())
        gradients.clear()
        model(torch.ones(2, 4, device=where)).sum().backward()
        gradients.sum_over_ranks()
        optimizer.step()
        arrived = torch.zeros(4, device=where)
        dist.all_to_all_single(arrived, torch.ones(4, device=where), [4], [4])
        dist.all_gather_into_tensor(arrived, 2 * arrived.clone())
        assert arrived.tolist() == [2.0] * 4
        print("done", flush=True)
        if device == "cuda":
            dist.destroy_process_group()
            return 0
    os._exit(0)  # gloo's threads cannot be destroyed safely


TASKS = {
    "seqtrack": lambda *words: main(words),
    "rank": rank_of_gloo,
    "out_of_memory": out_of_memory,
    "digest": lambda *words: print(digest_after(*words)),
    "alone": alone_in_a_group,
}
