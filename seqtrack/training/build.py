"""Builds the training components from a checked configuration.

The only other readers of a run's keys are `train.py`, `training/run_metadata.py` and the two translations that training
and tracking share: `model.spec.model_spec` and `tracking.settings.tracker_settings`. Everything below takes values,
never the configuration.
"""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from seqtrack.config.schema import Config
from seqtrack.data.augment import Jitter
from seqtrack.data.dataset import SampleSpec, TrackingDataset
from seqtrack.data.lasot import draw_classes
from seqtrack.data.sources import Source, open_source
from seqtrack.device import (
    DTYPES,
    capability_of,
    choose_precision,
    compiler_problem,
    explain_out_of_memory,
    has_tf32,
    is_emulated,
    stores_attention_scores,
)
from seqtrack.errors import UserError
from seqtrack.model.build import build_empty, build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.model.weights import load_pretrained
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.runtime.environment import fingerprint
from seqtrack.runtime.stop import StopRequest
from seqtrack.training.optimizer import OptimizerSettings, ScheduleSettings
from seqtrack.training.train_step import StepSettings
from seqtrack.training.trainer import TrainerConfig, Validation

logger = logging.getLogger(__name__)


def open_sources(config: Config, data_dir: Path, *, split: str = "train") -> list[Source]:
    """The data sets of a configuration, its drawn classes included.

    Raises:
        UserError: everything that is wrong with any of them.
    """
    classes = draw_classes(config.DATA.CLASSES, count=config.DATA.RANDOM_CLASSES, seed=config.TRAIN.SEED)
    opened: list[Source] = []
    problems: list[str] = []
    for name in config.DATA.TRAIN.DATASETS_NAME:
        try:
            opened.append(open_source(name, data_dir, classes=classes, split=split))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return opened


def sample_spec(config: Config) -> SampleSpec:
    """What a training sample is made of."""
    data = config.DATA
    return SampleSpec(
        template_size=data.TEMPLATE.SIZE,
        search_size=data.SEARCH.SIZE,
        num_templates=data.TEMPLATE.NUMBER,
        template_factor=data.TEMPLATE.FACTOR,
        search_factor=data.SEARCH.FACTOR,
        template_jitter=Jitter(center=data.TEMPLATE.CENTER_JITTER, scale=data.TEMPLATE.SCALE_JITTER),
        search_jitter=Jitter(center=data.SEARCH.CENTER_JITTER, scale=data.SEARCH.SCALE_JITTER),
        interval=data.MAX_SAMPLE_INTERVAL,
        mode=data.SAMPLER_MODE,
    )


def make_dataset(config: Config, sources: list[Source]) -> TrackingDataset:
    """What samples are drawn from.

    Raises:
        UserError: a source that cannot be sampled, or damaged frame files.
    """
    return TrackingDataset(sources, config.DATA.TRAIN.DATASETS_RATIO, sample_spec(config), seed=config.TRAIN.SEED)


def step_settings(config: Config, distributed: DistributedContext) -> StepSettings:
    """The recipe's numbers of one step, with the precision that the device is good at."""
    return StepSettings(
        seed=config.TRAIN.SEED,
        bins=config.MODEL.BINS,
        seq_format=config.DATA.SEQ_FORMAT,
        mean=config.DATA.MEAN,
        std=config.DATA.STD,
        loss_weight=config.TRAIN.CE_WEIGHT,
        clip_norm=config.TRAIN.GRAD_CLIP_NORM or math.inf,
        accumulation=config.TRAIN.ACCUMULATION_STEPS,
        amp=DTYPES[choose_precision(config.TRAIN.AMP, capability_of(distributed.device))],
    )


def run_fingerprint(config: Config, distributed: DistributedContext) -> dict[str, Any]:
    """What the run's last digits depend on; asked for after `set_kernels`."""
    precision = choose_precision(config.TRAIN.AMP, capability_of(distributed.device))
    return fingerprint(distributed, precision=precision, compiled=config.TRAIN.COMPILE)


def optimizer_settings(config: Config) -> OptimizerSettings:
    """What AdamW is made with."""
    train = config.TRAIN
    return OptimizerSettings(
        name=train.OPTIMIZER,
        learning_rate=train.LR,
        encoder_multiplier=train.ENCODER_MULTIPLIER,
        weight_decay=train.WEIGHT_DECAY,
        freeze_encoder=train.FREEZE_ENCODER,
        encoder_open=train.ENCODER_OPEN,
    )


def schedule_settings(config: Config, steps_per_epoch: int) -> ScheduleSettings:
    """What the learning rate depends on; TYPE step takes its factor from DECAY_RATE, as the authors' files do."""
    train, scheduler = config.TRAIN, config.TRAIN.SCHEDULER
    return ScheduleSettings(
        kind=scheduler.TYPE,
        steps_per_epoch=steps_per_epoch,
        epochs=train.EPOCH,
        drop_epoch=train.LR_DROP_EPOCH,
        gamma=scheduler.DECAY_RATE if scheduler.TYPE == "step" else scheduler.GAMMA,
        milestones=scheduler.MILESTONES,
        warmup_steps=scheduler.WARMUP_STEPS,
        final_ratio=scheduler.FINAL_RATIO,
    )


def trainer_config(config: Config, manifest_facts: dict[str, Any]) -> TrainerConfig:
    """The loop's numbers, and what every manifest of the run says alike."""
    train = config.TRAIN
    return TrainerConfig(
        epochs=train.EPOCH,
        batch_size=train.BATCH_SIZE,
        print_interval=train.PRINT_INTERVAL,
        save_interval_s=train.SAVE_INTERVAL_S,
        bins=config.MODEL.BINS,
        validation_interval=train.VALIDATION_INTERVAL,
        describe=manifest_facts,
    )


def set_kernels(config: Config, distributed: DistributedContext) -> None:
    """Threads, and kernels whose sums come out the same each time.

    Raises:
        UserError: the device has none for the precision asked for, or no compiler for TRAIN.COMPILE.
    """
    capability = capability_of(distributed.device)
    precision = choose_precision(config.TRAIN.AMP, capability)  # refused here, before anything is written
    if config.TRAIN.COMPILE and (problem := compiler_problem(distributed.device)):
        raise UserError(f"{problem}; install it, or set TRAIN.COMPILE False", code="device.no_compiler")
    if is_emulated(precision, capability):
        logger.warning("this GPU has no hardware for bf16, which is slower than float32 on it: set TRAIN.AMP auto")
    if config.TRAIN.TF32 and not has_tf32(capability):
        logger.warning("TRAIN.TF32 has no effect: %s has no TF32", distributed.device.type)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.TRAIN.TF32
    if config.TRAIN.NUM_THREADS:
        torch.set_num_threads(config.TRAIN.NUM_THREADS)
    deterministic = config.TRAIN.DETERMINISTIC
    if distributed.device.type == "cuda" and deterministic:
        # cuBLAS takes its workspace from this variable; it must be set before the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    # Filling fresh memory guards against reading it unwritten; no kernel here does, and it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def build_training_model(config: Config, distributed: DistributedContext, *, fresh: bool) -> SeqTrack:
    """The model on its device: with its first weights for a fresh run, otherwise with none yet: a checkpoint has all.

    Raises:
        UserError: the pretrained weights cannot be had.
    """
    spec = model_spec(config)

    def initialise() -> SeqTrack:
        model = build_model(spec, seed=config.TRAIN.SEED)
        if spec.pretrain_type != "scratch":
            load_pretrained(model, spec)
        return model.to(distributed.device)

    with explain_out_of_memory("while the model was put on the device", "take a smaller model, or DEVICE=cpu"):
        made: list[SeqTrack] = []
        if fresh:
            distributed.run_on_rank0_and_broadcast(
                lambda: made.append(initialise())
            )  # rank 0 alone: what is downloaded is downloaded once
        model = made[0] if made else build_empty(spec).to_empty(device=distributed.device)
        if fresh:
            distributed.share(model)
    capability = capability_of(distributed.device)
    precision = choose_precision(config.TRAIN.AMP, capability)
    model.encoder.body.explicit_attention = capability is None and stores_attention_scores(precision, capability)
    return model


def callable_form(config: Config, model: nn.Module) -> nn.Module:
    """The form of the model that a step calls: compiled if asked for."""
    # One graph for each batch size: a graph for any size would be made for the short batch at an epoch's end and serve
    # the full ones from then on, but not in a process that starts there.
    return cast(nn.Module, torch.compile(model, dynamic=False)) if config.TRAIN.COMPILE else model


def num_workers(config: Config) -> int:
    """TRAIN.NUM_WORKER, or for "auto" a core each of those that this process may use, shared with its machine's others.

    More than 12 never were faster: one prepares several hundred samples a second.
    """
    asked = config.TRAIN.NUM_WORKER
    if not isinstance(asked, str):
        return asked
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(12, len(os.sched_getaffinity(0)) // processes))


def samples_per_epoch(config: Config, dataset: TrackingDataset) -> int:
    """DATA.TRAIN.SAMPLE_PER_EPOCH, or as many samples as use each frame about once for "auto"."""
    asked = config.DATA.TRAIN.SAMPLE_PER_EPOCH
    return dataset.automatic_epoch() if isinstance(asked, str) else asked


def make_validation(
    config: Config, data_dir: Path, trained_on: Sequence[Source], distributed: DistributedContext
) -> Validation | None:
    """What scores a model on held-out sequences of the same data sets; None where the configuration asks for none.

    Raises:
        UserError: a sequence that is trained on is among them, or they cannot be opened.
    """
    if config.TRAIN.VALIDATION_INTERVAL == 0 or not distributed.is_main:
        return None
    # Imported here: a run without validation needs no tracker.
    from seqtrack.evaluation.run import refuse_leak, validate
    from seqtrack.tracking.settings import tracker_settings

    held_out = [one for source in open_sources(config, data_dir, split="test") for one in source.sequences]
    wanted = min(config.TRAIN.VALIDATION_SEQUENCES or len(held_out), len(held_out))
    held_out = [held_out[i * len(held_out) // wanted] for i in range(wanted)]  # spread over the classes
    trained = [one for source in trained_on for one in source.sequences]
    refuse_leak(held_out, trained)
    settings = tracker_settings(config, dataset=config.DATA.TRAIN.DATASETS_NAME[0])

    def score(model: nn.Module, stop: StopRequest) -> dict[str, float] | None:
        return validate(cast(SeqTrack, model), held_out, settings, trained_on=trained, stopped=lambda: stop.is_set)

    return score
