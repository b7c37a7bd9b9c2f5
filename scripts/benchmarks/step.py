"""One whole training step: forward, loss, backward, clipping at 0.1, AdamW; beside a plain 2048-cube matmul.

The matmul runs between the steps of the same process, in float32 whatever the step's dtype, so that its rate and the
step's were measured on the machine in the same state. `gflops` counts the model's nominal work (459 GFLOP a sample at
B256 with two templates: three times the forward pass), not what was saved or computed twice. On the CPU, set
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ as the entrypoint does; the result says whether they were set.
"""

import argparse
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqtrack.boxes import xywh_to_cxcywh
from seqtrack.model.build import build_model
from seqtrack.model.cost import cost_of
from seqtrack.model.loss import sequence_loss
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import target_sequences

CUBE = 2048
GIB = 2**30
SIZES = {
    "b256": ModelSpec(),
    "b384": ModelSpec(search_size=384, template_size=384),
    "l256": ModelSpec(encoder_type="vit_large_patch16"),
    "l384": ModelSpec(encoder_type="vit_large_patch16", search_size=384, template_size=384),
}
# Dense peak in TFLOP/s of an H100 or H200 SXM, for model FLOPs utilisation: bf16, TF32, fp32 on the plain cores.
GPU_PEAK_TFLOPS = {"bf16": 989.0, "tf32": 494.0, "fp32": 67.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--size", choices=sorted(SIZES), default="b256")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--tf32", action="store_true", help="CUDA: let fp32 products use TF32")
    parser.add_argument("--deterministic", action="store_true", help="deterministic kernels only")
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after two that warm up")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes, on stderr")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    _set_kernels(args)
    spec = SIZES[args.size]
    if args.checkpointing:
        spec = ModelSpec(**{**spec.__dict__, "use_checkpoint": True})
    model = build_model(spec, seed=1).to(device).train()
    step = _make_step(model, args, device)
    for _ in range(2):
        step()
    _reset_peak(device)
    seconds, matmul_seconds = [], []
    for _ in range(args.steps):
        matmul_seconds.append(_time_matmul(device))
        begin = time.perf_counter()
        step()
        _wait(device)
        seconds.append(time.perf_counter() - begin)
    peak = _peak_bytes(device)
    if args.profile:
        _print_profile(step, device)
    median = statistics.median(seconds)
    # The decoder's 0.2 % is left out, as in the figures this is compared with.
    sample = 3 * cost_of(spec).encoder_flops
    matmul_rate = 2 * CUBE**3 / statistics.median(matmul_seconds) / 1e9
    rate = sample * args.batch / median / 1e9
    result = {
        "benchmark": "step",
        "size": args.size,
        "batch": args.batch,
        "dtype": args.dtype,
        "checkpointing": args.checkpointing,
        "compile": args.compile,
        "device": args.device,
        "seconds": median,
        "seconds_all": seconds,
        "samples_per_s": args.batch / median,
        "gflop_a_sample": sample / 1e9,
        "gflops": rate,
        "matmul_gflops": matmul_rate,
        "ratio": rate / matmul_rate,
        "peak_gib": peak / GIB,
        "threads": torch.get_num_threads(),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_") or k == "LD_PRELOAD"},
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    if device.type == "cuda":
        kind = "bf16" if args.dtype == "bf16" else "tf32" if args.tf32 else "fp32"
        result["gpu"] = torch.cuda.get_device_name()
        result["mfu"] = rate / 1e3 / GPU_PEAK_TFLOPS[kind]
    return result


def _set_kernels(args: argparse.Namespace) -> None:
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    torch.backends.cudnn.allow_tf32 = args.tf32
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _make_step(model: SeqTrack, args: argparse.Namespace, device: torch.device) -> Any:
    """The step as a function without arguments, over one fixed batch that already lies on the device."""
    spec = model.spec
    generator = torch.Generator().manual_seed(2)
    templates = torch.randn(
        args.batch, spec.num_templates, 3, spec.template_size, spec.template_size, generator=generator
    ).to(device)
    search = torch.randn(args.batch, 3, spec.search_size, spec.search_size, generator=generator).to(device)
    boxes = torch.rand(args.batch, 4, generator=generator) * 0.5
    inputs, targets = (part.to(device) for part in target_sequences(xywh_to_cxcywh(boxes), spec.bins))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=1e-4, fused=True)
    forward = torch.compile(model) if args.compile else model

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            logits = forward(templates, search, inputs)
        loss = sequence_loss(logits, targets, spec.bins).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
        return loss

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _time_matmul(device: torch.device, *, repeats: int = 5) -> float:
    a = torch.ones(CUBE, CUBE, device=device)
    b = torch.ones(CUBE, CUBE, device=device)
    out = torch.empty(CUBE, CUBE, device=device)
    times = []
    for _ in range(repeats):
        _wait(device)
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        _wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _reset_peak(device: torch.device) -> None:
    """Forget the peak so far. On Linux, "5" resets the process's high-water mark of resident memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _peak_bytes(device: torch.device) -> int:
    """Peak of allocated memory on a GPU, of resident memory (everything in the process) on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _print_profile(step: Any, device: torch.device) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
        _wait(device)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=order, row_limit=25), file=sys.stderr)
