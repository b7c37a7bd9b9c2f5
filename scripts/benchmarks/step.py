"""One complete training step (forward, loss, backward, clipping at 0.1, AdamW), relative to a 2048-cube matmul.

The matmul runs between the steps in the same process, in float32 for every dtype of the step, so that both rates belong
to the same state of the machine. `gflops` counts the model's nominal work (459 GFLOP per sample at B256 with two
templates: three times the forward pass), regardless of what is skipped or computed twice. On the CPU the process
restarts itself with the entrypoint's allocator settings; the result lists them.
"""

import argparse
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from seqtrack.boxes import xywh_to_cxcywh
from seqtrack.config.loader import load_config
from seqtrack.device import allow_deterministic_matmul
from seqtrack.gpu_peaks import peak_tflops
from seqtrack.model.build import build_model
from seqtrack.model.cost import cost_of
from seqtrack.model.loss import sequence_loss
from seqtrack.model.spec import ModelSpec, model_spec
from seqtrack.tokens import target_sequences

CUBE = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=("demo", "b256", "b384", "l256", "l384"), default="b256")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in the backward pass")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--tf32", action="store_true", help="CUDA: let fp32 products use TF32")
    parser.add_argument("--deterministic", action="store_true", help="deterministic kernels only")
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after two that warm up")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--plain-malloc", action="store_true", help="CPU: leave the allocator's settings as they are")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    if args.deterministic:
        allow_deterministic_matmul(torch.device(args.device))
        torch.use_deterministic_algorithms(True)
    experiment = load_config("demo" if args.size == "demo" else f"seqtrack_{args.size}")
    spec = dataclasses.replace(model_spec(experiment), use_checkpoint=args.checkpointing)
    step = _make_step(spec, args)
    for _ in range(2):
        step()
    on_gpu = args.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of resident memory
    seconds, matmul_seconds = [], [_time_matmul(args.device)]
    for _ in range(args.steps):
        seconds.append(_time(step, on_gpu))
        matmul_seconds.append(_time_matmul(args.device))
    # Allocated memory on a GPU, resident memory (everything in the process) on the CPU.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_bytes = torch.cuda.max_memory_allocated() if on_gpu else int(status["VmHWM"].split()[0]) * 1024
    # Without the decoder's 0.2 %, as in the numbers this is compared with.
    sample = 3 * cost_of(spec).encoder_flops
    rates = [sample * args.batch / each / 1e9 for each in seconds]
    matmul_rates = [2 * CUBE**3 / each / 1e9 for each in matmul_seconds]
    # Each step is compared with the matmuls before and after it, so that other load affects both.
    ratios = [rate / statistics.mean(matmul_rates[i : i + 2]) for i, rate in enumerate(rates)]
    result = {
        "benchmark": "step",
        **{name: getattr(args, name) for name in ("size", "batch", "dtype", "checkpointing", "compile", "device")},
        "seconds": statistics.median(seconds),
        "seconds_all": seconds,
        "samples_per_s": args.batch / statistics.median(seconds),
        "gflop_a_sample": sample / 1e9,
        "gflops": statistics.median(rates),
        "matmul_gflops": statistics.median(matmul_rates),
        "ratio": statistics.median(ratios),
        "peak_gib": peak_bytes / 2**30,
        "threads": torch.get_num_threads(),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "THP_", "GLIBC_TUN", "LD_PRELOAD"))},
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    if on_gpu:
        result["gpu"] = torch.cuda.get_device_name()
        peak = peak_tflops(torch.cuda.get_device_name(), "tf32" if args.dtype == "fp32" and args.tf32 else args.dtype)
        result |= {"mfu": result["gflops"] / 1e3 / peak} if peak else {}
    return result


def _make_step(spec: ModelSpec, args: argparse.Namespace) -> Callable[[], None]:
    """The step as a function without arguments, on one fixed batch on the device."""
    model = build_model(spec, seed=1).to(args.device).train()
    generator = torch.Generator().manual_seed(2)
    shapes = ((spec.num_templates, 3, *[spec.template_size] * 2), (3, *[spec.search_size] * 2))
    templates, search = (torch.randn(args.batch, *shape, generator=generator).to(args.device) for shape in shapes)
    boxes = torch.rand(args.batch, 4, generator=generator) * 0.5
    inputs, targets = (part.to(args.device) for part in target_sequences(xywh_to_cxcywh(boxes), spec.bins))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=1e-4, fused=True)
    forward = torch.compile(model) if args.compile else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            logits = forward(templates, search, inputs)
        sequence_loss(logits, targets, spec.bins).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()

    return step


def _time(work: Callable[[], object], on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _time_matmul(device: str) -> float:
    a, b, out = (torch.ones(CUBE, CUBE, device=device) for _ in range(3))
    return statistics.median(_time(lambda: torch.mm(a, b, out=out), device == "cuda") for _ in range(5))
