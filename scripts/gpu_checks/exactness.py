"""Items about bits: reference outputs, equality of two runs, precisions, activation checkpointing, saves."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.amp.grad_scaler import GradScaler

from gpu_checks.children import digest_after
from gpu_checks.common import ROOT, Check, Context, Skipped, Trainer, completed, differing, wait
from seqtrack.boxes import xywh_to_cxcywh
from seqtrack.checkpoints.store import load_checkpoint, manifest_of
from seqtrack.config.loader import load_config
from seqtrack.device import choose_precision
from seqtrack.model.build import build_empty
from seqtrack.model.loss import sequence_loss
from seqtrack.model.spec import model_spec
from seqtrack.run_dir import step_name
from seqtrack.tokens import hann_window, target_sequences
from seqtrack.tracking.tracker import BatchTracker, TrackerSettings
from seqtrack.training.checkpointer import Checkpointer

TIMES_NOISE = 10


def start(context: Context, check: Check) -> str:
    """The card, its precision, and what the doctor finds."""
    ones = torch.ones(256, 256, device=context.device)
    check.that(bool((ones @ ones == 256).all()), "a product of ones came out wrong")
    capability = torch.cuda.get_device_capability(0) if context.is_cuda else None
    amp = choose_precision("auto", capability)
    if capability is not None:
        known = any(one.startswith(f"sm_{capability[0]}") for one in torch.cuda.get_arch_list())
        check.that(known, f"compute capability {capability} is not in the arch list")
        check.that(amp == "bf16" or capability < (8, 0), f"AMP auto is {amp}")
    found = completed(context, context.environment(context.work / "none"), "seqtrack", "doctor")
    bad = [line for line in found.said.splitlines() if line.startswith("BAD")]
    bad = [line for line in bad if not line.startswith("BAD   packages")]  # not the project's on this machine
    check.values |= {"amp": amp, "doctor": found.said.splitlines()}
    check.that(not bad, "; ".join(bad))
    check.that(found.code in (0, 1) and "Traceback" not in found.said, f"doctor ended with {found.said[-300:]}")
    return f"AMP auto is {amp}, doctor exits {found.code}"


def model_sets() -> Any:
    """The reference outputs' own module."""
    if not os.environ.get("SEQTRACK_GOLDENS"):
        raise Skipped("no reference outputs")
    sys.path.append(str(ROOT / "tests" / "golden"))
    try:
        import model_sets
    except ImportError as error:
        raise Skipped(str(error)) from None
    return model_sets


@contextmanager
def switches(tf32: bool) -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def golden_parity(context: Context, check: Check) -> str:
    """The reference outputs at the model's real size on this device, and of the tiny variants."""
    sets = model_sets()
    worst = 0.0
    for rule in context.pick(("A", "B"), ()):
        with switches(tf32=False):
            worst = max(worst, _golden(context, check, sets, rule))
        for name, tf32, dtype in (("tf32", True, None), ("bf16", False, torch.bfloat16)):
            with switches(tf32), torch.autocast(context.device, dtype=dtype, enabled=dtype is not None):
                _, theirs, part, logits, _ = _golden_run(context, sets, rule)
            distances = {"encoder": _relative(part, theirs["enc_slice"])}
            distances["logits"] = _relative(logits.detach().cpu().numpy(), theirs["logits"])
            check.values[f"{rule} {name}"] = distances
    if not context.small:
        with switches(tf32=False):
            _golden_tracker(context, check, sets)
    for path in sorted((sets.folder() or Path()).glob("tiny_*.npz")):
        worst = max(worst, _golden_tiny(context, check, sets, path))
    return f"worst distance {worst:.2f} of what is allowed"


def _relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """L2 norm of the difference, relative to that of the reference."""
    ours, reference = ours.astype(np.float64), reference.astype(np.float64)
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def _golden_run(context: Context, sets: Any, rule: str) -> tuple[Any, Any, Any, Any, Any]:
    """Model, stored outputs, the stored part of the encoded tokens, logits and targets of a B256 set."""
    spec = sets.spec_of_size("b256")
    model = sets.fill(build_empty(spec), rule).to(context.device)
    templates, search = sets.images("input", spec.template_size, spec.search_size, 2, spec.num_templates)
    templates, search = templates.to(context.device), search.to(context.device)
    theirs = sets.read(sets.folder() / f"model_b256_{rule}.npz")
    inputs, targets = target_sequences(xywh_to_cxcywh(torch.from_numpy(theirs["anno"][0])), spec.bins, spec.seq_format)
    with torch.no_grad():
        encoded = model.encoder(templates, search).float().cpu().numpy()
    logits = model(templates, search, inputs.to(context.device)).float()
    return model, theirs, encoded[:, theirs["tok_idx"]][..., theirs["ch_idx"]], logits, targets


def _golden(context: Context, check: Check, sets: Any, rule: str) -> float:
    model, theirs, part, logits, targets = _golden_run(context, sets, rule)
    exact_file = sets.folder() / f"fp64_b256_{rule}.npz"
    exact = sets.read(exact_file) if exact_file.is_file() else {}
    references = {
        "enc": (part, exact.get("enc64_slice", theirs["enc_slice"])),
        "logits": (logits.detach().cpu().numpy(), exact.get("logits64", theirs["logits"])),
    }
    worst = 0.0
    for what, (ours, reference) in references.items():
        allowed = TIMES_NOISE * sets.noise_floor("b256", rule, what)[1]
        relative = _relative(ours, reference)
        check.values[f"{rule} {what}"] = relative
        check.that(relative <= allowed, f"set {rule}: {what} {relative:.1e}, allowed {allowed:.1e}")
        worst = max(worst, relative / allowed)
    facts = sets.read_json(f"model_b256_{rule}.json") or {}
    sequence_loss(logits, targets.to(context.device), model.spec.bins).mean().backward()
    norms = facts.get("grad_norm", {})
    off = {
        name: abs(float(p.grad.double().norm()) - norms[name]) / norms[name]
        for name, p in model.named_parameters()
        if p.grad is not None and norms.get(name)
    }
    largest = max(off.values(), default=0.0)
    check.values[f"{rule} gradient norms"] = largest
    check.that(bool(off) and largest <= 1e-4, f"set {rule}: a gradient's norm is off by {largest:.1e}")
    for index in range(3):
        spec = model.spec
        images = sets.images(f"infer{index}", spec.template_size, spec.search_size, 1, spec.num_templates)
        with torch.no_grad():
            memory = model.encode(*(image.to(context.device) for image in images))
            for mode, window in (("nowin", None), ("win", hann_window(spec.bins).to(context.device))):
                key = f"inf{index}_{mode}"
                tokens = model.generate(memory, window).tokens.cpu()[0].tolist()
                sure = int((theirs[f"{key}_rel_margin"].reshape(-1) > 1e-4).cumprod().sum())
                expected = theirs[f"{key}_tokens"][0].tolist()
                check.that(tokens[:sure] == expected[:sure], f"set {rule}: {key} gave {tokens}, expected {expected}")
    return max(worst, largest / 1e-4)


def _golden_tiny(context: Context, check: Check, sets: Any, path: Path) -> float:
    from test_golden_model_tiny import CLOSE, spec_of

    spec, rule, prefix, batch = spec_of(path.stem.removeprefix("tiny_"))
    theirs = sets.read(path)
    model = sets.fill(build_empty(spec), rule).to(context.device)
    images = sets.images(prefix, spec.template_size, spec.search_size, batch, spec.num_templates)
    inputs, _ = target_sequences(xywh_to_cxcywh(torch.from_numpy(theirs["anno"][0])), spec.bins, spec.seq_format)
    with torch.no_grad():
        logits = model(*(image.to(context.device) for image in images), inputs.to(context.device)).cpu().numpy()
    off = abs(logits - theirs["logits"]) / (CLOSE["atol"] + CLOSE["rtol"] * abs(theirs["logits"]))
    check.values[path.stem] = float(off.max())
    check.that(off.max() <= 1, f"{path.stem}: logits are off by {off.max():.1f} of what is allowed")
    return float(off.max())


def _golden_tracker(context: Context, check: Check, sets: Any) -> None:
    """The tokens of the reference tracker, each frame searched around the reference box before it."""
    facts = sets.read_json("tracker_b256.json")
    theirs = sets.read(sets.folder() / "tracker_b256.npz")
    frames, box = sets.video(facts["T"])
    model = sets.fill(build_empty(model_spec(load_config(facts["config"]))), facts["rule"]).to(context.device)
    settings = TrackerSettings(update_interval=facts["update_interval"], update_threshold=facts["update_threshold"])
    follower = BatchTracker(model, settings)
    state = follower.start(frames[0], box)
    wrong = 0
    for index, frame in enumerate(frames[1:]):
        tokens = follower.track([state], [frame])[0].tokens
        wrong += list(tokens) != theirs["tokens_win"][index].tolist()
        state.box_xywh = theirs["states_win"][index].astype(np.float64)
    check.values["frames with other tokens"] = wrong
    check.that(wrong <= 1, f"{wrong} of {len(frames) - 1} frames give other tokens than the reference")


def two_runs(context: Context, check: Check) -> str:
    """Steps of the real training step twice from one seed, and once in another process."""
    steps, batch = context.pick(("6", "8"), ("3", "4"))
    arguments = (context.device, context.pick("full", "small"), steps, batch)
    first, again = (digest_after(*arguments) for _ in range(2))
    context.forget()
    env = {**context.environment(context.work), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = completed(context, env, "digest", *arguments)
    check.values |= {"digests": [first, again, child.last_line]}
    check.that(first == again, "two runs in one process differ")
    check.that(first == child.last_line, f"a child process differs: {child.last_line:.200}")
    return f"{steps} steps of bf16, sha256 {first[:12]}"


def amp_variants(context: Context, check: Check) -> str:
    """Each precision learns one batch; fp16's overflow is skipped, and its state continues as if never saved."""
    steps, batch = context.pick((20, 8), (8, 4))
    keys = {"TRAIN.LR": 1e-3, "MODEL.DECODER.DROPOUT": 0.0}
    variants = [("off", False), ("bf16", False)]
    variants += [("off", True), ("fp16", False)] if context.is_cuda else []
    for amp, tf32 in variants:
        name = "tf32" if tf32 else amp
        with switches(tf32):
            results = Trainer(context, {**keys, "TRAIN.AMP": amp}, batch=batch).steps(steps)
        losses = check.values[name] = [round(result.loss_sum / batch, 4) for result in results]
        check.that(losses[-1] < losses[0], f"{name}: the loss went from {losses[0]} to {losses[-1]}")
        context.forget()
    return _overflow(context, check, keys, batch)


def _overflow(context: Context, check: Check, keys: dict[str, Any], batch: int) -> str:
    """The scaler starts far too high, so that the first steps overflow; without fp16 the scale overflows float32."""
    amp = "fp16" if context.is_cuda else "off"
    huge = 2.0**30 if context.is_cuda else 2.0**126
    keys = keys if context.is_cuda else {**keys, "TRAIN.CE_WEIGHT": 1e6}

    def begin() -> Trainer:
        trainer = Trainer(context, {**keys, "TRAIN.AMP": amp, "MODEL.DECODER.DROPOUT": 0.1}, batch=batch)
        trainer.state.scaler = GradScaler(context.device, init_scale=huge, backoff_factor=2.0**-8, enabled=True)
        return trainer

    uninterrupted = begin()
    whole = uninterrupted.steps(12)
    skipped = sum(result.grad_norm is None or not result.grad_norm < float("inf") for result in whole)
    check.values["skipped steps"] = skipped
    check.that(0 < skipped < 12, f"{skipped} of 12 steps were skipped as overflows")
    first = begin()
    first.steps(6)
    tensors, values = first.tensors(), first.state.capture()[1]
    resumed = begin()
    resumed.state.restore(tensors, values)
    resumed.steps(6)
    off = differing(uninterrupted.tensors(), resumed.tensors())
    check.that(not off, f"a resumed {amp} run differs in {len(off)} tensors, first {off[:1]}")
    return f"{skipped} overflows skipped, then {uninterrupted.state.scaler.get_scale():g} as scale"


def activation_checkpointing(context: Context, check: Check) -> str:
    """Gradients of one step with and without it."""
    gradients = []
    for used in (False, True):
        trainer = Trainer(context, {"TRAIN.AMP": "off", "MODEL.ENCODER.USE_CHECKPOINT": used}, batch=4)
        trainer.steps(1)
        gradients.append({n: p.grad.cpu() for n, p in trainer.state.model.named_parameters() if p.grad is not None})
        del trainer
        context.forget()
    off = differing(*gradients)
    check.values["parameters"] = len(gradients[0])
    check.that(bool(gradients[0]) and not off, f"{len(off)} gradients differ, first {off[:1]}")
    return f"{len(gradients[0])} gradients"


def save(context: Context, check: Check) -> str:
    """A save while steps continue: how long training is, and whether the file holds the state of that moment."""
    trainer = Trainer(context, {"TRAIN.AMP": "bf16"}, batch=4)
    trainer.steps(2)
    trainer.state.epoch = trainer.state.sample = 1
    folder = context.work / "save"
    folder.mkdir()
    checkpointer = Checkpointer(folder, parent_sha256=None)
    began = time.perf_counter()
    coming = {f"optimizer/{path}": tensor for path, tensor in trainer.state.optimizer.expected_state_shapes().items()}
    checkpointer.preallocate({**coming, **trainer.state.capture()[0]})
    check.values["reserve_s"] = time.perf_counter() - began
    stalls = []
    describe: dict[str, Any] = {"kind": "step", "epoch": 1, "sample": 1, "loss": 4.0, "iou": 0.1, "created": ""}
    describe |= {"config_digest": None, "data_digest": None}
    for number in range(3):
        expected = trainer.tensors()
        wait(context)
        tensors, values = trainer.state.capture()
        name = step_name(trainer.state.step)
        began = time.perf_counter()
        checkpointer.save(name, tensors, values, describe={**describe, "step": trainer.state.step})
        stalls.append(time.perf_counter() - began)
        trainer.steps(3)
        checkpointer.wait()
        off = differing(expected, load_checkpoint(manifest_of(folder / name))[0])
        check.that(not off, f"save {number}: {len(off)} tensors are not those of that moment, first {off[:1]}")
        (folder / name).unlink()
    buffers = list(checkpointer._buffers.values())
    check.values |= {"stalls_s": stalls, "bytes": sum(b.nbytes for b in buffers)}
    check.values["pinned_bytes"] = sum(b.nbytes for b in buffers if b.is_pinned()) if context.is_cuda else 0
    stall = sorted(stalls)[1]
    check.that(stall < 0.06 or not context.is_cuda, f"training was blocked for {stall * 1e3:.0f} ms")
    return f"stall {stall * 1e3:.1f} ms, reserved in {check.values['reserve_s']:.2f} s"
