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
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.allocator import start_again_with_the_allocator_set
from benchmarks.peaks import peak_tflops
from seqtrack.boxes import xywh_to_cxcywh
from seqtrack.model.build import build_model
from seqtrack.model.cost import cost_of
from seqtrack.model.loss import sequence_loss
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import target_sequences

CUBE = 2048
_ALLOCATION = ("MALLOC_", "THP_", "GLIBC_TUNABLES", "LD_PRELOAD")
GIB = 2**30
SIZES = {
    "demo": ModelSpec(
        encoder_type="vit_custom", embed_dim=128, depth=2, num_heads=8, search_size=96, template_size=48,
        num_templates=1, hidden_dim=128, bins=64, decoder_feedforward=512, dropout=0.0,
    ),
    "b256": ModelSpec(),
    "b384": ModelSpec(search_size=384, template_size=384),
    "l256": ModelSpec(encoder_type="vit_large_patch16"),
    "l384": ModelSpec(encoder_type="vit_large_patch16", search_size=384, template_size=384),
}  # fmt: skip


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
    parser.add_argument("--plain-malloc", action="store_true", help="CPU: leave the allocator's settings as they are")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result."""
    if args.device == "cpu" and not args.plain_malloc:
        start_again_with_the_allocator_set()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    _set_kernels(args)
    spec = dataclasses.replace(SIZES[args.size], use_checkpoint=args.checkpointing)
    model = build_model(spec, seed=1).to(device).train()
    step = _make_step(model, args, device)
    for _ in range(2):
        step()
    _reset_peak(device)
    seconds, matmul_seconds = [], [_time_matmul(device)]
    for _ in range(args.steps):
        begin = time.perf_counter()
        step()
        _wait(device)
        seconds.append(time.perf_counter() - begin)
        matmul_seconds.append(_time_matmul(device))
    peak = _peak_bytes(device)
    return _result(args, spec, seconds, matmul_seconds, peak)


def _result(
    args: argparse.Namespace, spec: ModelSpec, seconds: list[float], matmul_seconds: list[float], peak: int
) -> dict[str, Any]:
    # Without the decoder's 0.2 %, as in the numbers this is compared with.
    sample = 3 * cost_of(spec).encoder_flops
    rates = [sample * args.batch / each / 1e9 for each in seconds]
    matmul_rates = [2 * CUBE**3 / each / 1e9 for each in matmul_seconds]
    # Each step is compared with the matmuls before and after it, so that other load affects both.
    ratios = [rate / statistics.mean(matmul_rates[i : i + 2]) for i, rate in enumerate(rates)]
    median = statistics.median(seconds)
    result = {
        "benchmark": "step",
        **{name: getattr(args, name) for name in ("size", "batch", "dtype", "checkpointing", "compile", "device")},
        "seconds": median,
        "seconds_all": seconds,
        "samples_per_s": args.batch / median,
        "gflop_a_sample": sample / 1e9,
        "gflops": statistics.median(rates),
        "matmul_gflops": statistics.median(matmul_rates),
        "ratio": statistics.median(ratios),
        "peak_gib": peak / GIB,
        "threads": torch.get_num_threads(),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith(_ALLOCATION)},
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    if args.device == "cuda":
        kind = "bf16" if args.dtype == "bf16" else "tf32" if args.tf32 else "fp32"
        name = torch.cuda.get_device_name()
        peak = peak_tflops(name, kind)
        result |= {"gpu": name} | ({"mfu": result["gflops"] / 1e3 / peak} if peak else {})
    return result


def _set_kernels(args: argparse.Namespace) -> None:
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    torch.backends.cudnn.allow_tf32 = args.tf32
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _make_step(model: SeqTrack, args: argparse.Namespace, device: torch.device) -> Any:
    """The step as a function without arguments, on one fixed batch on the device."""
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
    """Reset the peak. On Linux, "5" resets the process's high-water mark of resident memory."""
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
