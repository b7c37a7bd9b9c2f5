"""Builds the components of a training run from its configuration; the only factory.

A component takes its own section of the configuration as its settings; what the data and the model are built from is
translated here, by `model.spec.model_spec` and `tracking.load.tracker_settings`.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from seqtrack.checkpoints.recognize import recognize
from seqtrack.checkpoints.side_files import Fingerprint
from seqtrack.checkpoints.store import load_weights, manifest_of, weights_digest
from seqtrack.config.schema import Config
from seqtrack.data.crop import Jitter
from seqtrack.data.dataset import SampleSpec, TrackingDataset
from seqtrack.data.lasot import draw_classes
from seqtrack.data.loader import BatchLoader
from seqtrack.data.sources import WITHOUT_TEST, Source, open_source
from seqtrack.device import (
    allow_deterministic_matmul,
    capability_of,
    choose_precision,
    compiler_problem,
    explain_out_of_memory,
    has_tf32,
    is_emulated,
)
from seqtrack.errors import Problem, UserError
from seqtrack.model.authors import read_authors_file
from seqtrack.model.build import build_empty, build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.model.weights import compare_states, load_pretrained
from seqtrack.places import find_checkpoint
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.runtime.environment import fingerprint
from seqtrack.runtime.stop import StopRequest
from seqtrack.training.optimizer import NamedOptimizer, Schedule
from seqtrack.training.state import RandomStates, TrainState
from seqtrack.training.trainer import Validation

logger = logging.getLogger(__name__)


def open_sources(config: Config, data_dir: Path, *, split: str = "train") -> list[Source]:
    """The data sets of a configuration, its randomly chosen classes included; a UserError lists all that is wrong."""
    classes = draw_classes(config.DATA.CLASSES, count=config.DATA.RANDOM_CLASSES, seed=config.TRAIN.SEED)
    opened: list[Source] = []
    problems: list[str] = []
    names = [name for name in config.DATA.TRAIN.DATASETS_NAME if split == "train" or name.upper() not in WITHOUT_TEST]
    if not names:
        text = f"none of {', '.join(config.DATA.TRAIN.DATASETS_NAME)} has held-out sequences to validate on"
        raise UserError(text, "data.no_split")
    for name in names:
        try:
            opened.append(open_source(name, data_dir, classes=classes, split=split))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return opened


def make_dataset(config: Config, sources: list[Source]) -> TrackingDataset:
    """The dataset that samples are drawn from; a UserError for a source that cannot be sampled."""
    data = config.DATA
    template, search = data.TEMPLATE, data.SEARCH
    spec = SampleSpec(
        template_size=template.SIZE,
        search_size=search.SIZE,
        num_templates=template.NUMBER,
        template_factor=template.FACTOR,
        search_factor=search.FACTOR,
        template_jitter=Jitter(center=template.CENTER_JITTER, scale=template.SCALE_JITTER),
        search_jitter=Jitter(center=search.CENTER_JITTER, scale=search.SCALE_JITTER),
        interval=data.MAX_SAMPLE_INTERVAL,
        mode=data.SAMPLER_MODE,
    )
    return TrackingDataset(sources, data.TRAIN.DATASETS_RATIO, spec, seed=config.TRAIN.SEED)


def build_loader(config: Config, sources: list[Source], distributed: DistributedContext) -> BatchLoader:
    """The loader of this rank's shards of the batches; its workers are not started yet.

    Raises:
        UserError: the run has more processes than TRAIN.SHARDS, or data that cannot be sampled.
    """
    shards, processes = config.TRAIN.SHARDS, distributed.world_size
    if 0 < shards < processes:
        text = f"TRAIN.SHARDS is {shards}, and the run has {processes} processes: some would have nothing to compute"
        raise UserError(
            f"{text}; set NPROC to at most {shards}, which changes no result", code="run.too_many_processes"
        )
    dataset = make_dataset(config, sources)
    per_epoch, workers = config.DATA.TRAIN.SAMPLE_PER_EPOCH, config.TRAIN.NUM_WORKER
    # For "auto" the cores of this process divided by the processes of this machine. More than 12 never were faster: one
    # worker prepares several hundred samples per second.
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return BatchLoader(
        dataset,
        batch_size_global=config.TRAIN.BATCH_SIZE,
        samples_per_epoch=dataset.automatic_epoch() if isinstance(per_epoch, str) else per_epoch,
        world_size=processes,
        rank=distributed.rank,
        shards=shards,
        num_workers=max(1, min(12, cores)) if isinstance(workers, str) else workers,
        pin=distributed.device.type == "cuda",
    )


def set_kernels(config: Config, distributed: DistributedContext) -> None:
    """Set the number of threads, and kernels whose sums are deterministic.

    Raises:
        UserError: the device has none for the requested precision, or no compiler for TRAIN.COMPILE.
    """
    train = config.TRAIN
    capability = capability_of(distributed.device)
    precision = choose_precision(train.AMP, capability)  # refused here, before anything is written
    if train.COMPILE and (problem := compiler_problem(distributed.device)):
        raise UserError(f"{problem}; install it, or set TRAIN.COMPILE False", code="device.no_compiler")
    if is_emulated(precision, capability):
        logger.warning("this GPU has no hardware for bf16, which is slower than float32 on it: set TRAIN.AMP auto")
    if train.TF32 and not has_tf32(capability):
        logger.warning("TRAIN.TF32 has no effect: %s has no TF32", distributed.device.type)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = train.TF32
    if train.NUM_THREADS:
        torch.set_num_threads(train.NUM_THREADS)
    if train.DETERMINISTIC:
        allow_deterministic_matmul(distributed.device)
    torch.backends.cudnn.benchmark = not train.DETERMINISTIC
    torch.use_deterministic_algorithms(train.DETERMINISTIC)
    # Filling fresh memory would reveal reads of uninitialised memory; no kernel here does that, and it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def run_fingerprint(config: Config, distributed: DistributedContext) -> Fingerprint:
    """What the run's bits depend on; valid after `set_kernels`."""
    precision = choose_precision(config.TRAIN.AMP, capability_of(distributed.device))
    train = config.TRAIN
    return fingerprint(distributed, precision=precision, compiled=train.COMPILE, shards=train.SHARDS)


def build_state(config: Config, distributed: DistributedContext, steps_per_epoch: int, *, fresh: bool) -> TrainState:
    """The training state before its first step; for a run that resumes its weights are uninitialised, to be restored.

    Raises:
        UserError: the pretrained weights, or those of TRAIN.INIT_FROM, cannot be obtained or do not fit.
    """
    spec = model_spec(config)
    made: list[SeqTrack] = []

    def initialise() -> None:
        model = build_model(spec, seed=config.TRAIN.SEED)
        if config.TRAIN.INIT_FROM:
            load_initial(model, config.TRAIN.INIT_FROM)
        elif spec.pretrain_type != "scratch":
            load_pretrained(model)
        made.append(model.to(distributed.device))

    with explain_out_of_memory("while the model was put on the device", "use a smaller model, or DEVICE=cpu"):
        if fresh:  # rank 0 alone, so that a download happens once; the others take its weights
            distributed.run_on_rank0_and_broadcast(initialise)
        model = made[0] if made else build_empty(spec).to_empty(device=distributed.device)
        if fresh:
            distributed.share(model)
    optimizer = NamedOptimizer(model, config.TRAIN)
    rng = RandomStates(distributed.rank, shared=config.TRAIN.SHARDS > 0)
    rng.seed(config.TRAIN.SEED)
    precision = choose_precision(config.TRAIN.AMP, capability_of(distributed.device))
    scaler = GradScaler(distributed.device.type, enabled=precision == "fp16")
    return TrainState(model, optimizer, Schedule(optimizer, config.TRAIN, steps_per_epoch), scaler, rng)


def load_initial(model: SeqTrack, place: str) -> None:
    """Load the weights of TRAIN.INIT_FROM.

    Args:
        place: a checkpoint of ours, one of the authors' trainer, or `hf://owner/name/PATH.safetensors`.

    Raises:
        UserError: no such file, a damaged one, or one of another model (every name and shape that differs).
    """
    path = find_checkpoint(place)
    try:
        is_ours = recognize(path).code != "file.torch"
    except OSError as error:
        raise UserError(f"TRAIN.INIT_FROM {place}: {error.strerror or error}", "init.unreadable") from error
    expected = model.state_dict()
    if is_ours:
        weights = load_weights(manifest_of(path))
        if problems := compare_states(weights, expected, what=str(path)):
            raise UserError([*problems, Problem(f"{path}: weights of another model", "weights.other_model")])
    else:
        weights, _ = read_authors_file(path, expected, skip_objects=True)
    model.load_state_dict(weights)
    logger.info("begins with the weights of %s", path)


def initial_digest(config: Config, model: nn.Module) -> str | None:
    """The digest of the weights before the first step; None where the seed alone determines them."""
    is_drawn = not config.TRAIN.INIT_FROM and config.MODEL.ENCODER.PRETRAIN_TYPE == "scratch"
    return None if is_drawn else weights_digest(model.state_dict())


def callable_form(config: Config, model: nn.Module) -> nn.Module:
    """The form of the model that a step calls: compiled with TRAIN.COMPILE."""
    # One graph per batch size: a dynamic graph would be made for the short batch at an epoch's end and serve the full
    # ones from then on, but not in a process that starts there.
    return cast(nn.Module, torch.compile(model, dynamic=False)) if config.TRAIN.COMPILE else model


def make_validation(
    config: Config, data_dir: Path, trained_on: Sequence[Source], distributed: DistributedContext
) -> Validation | None:
    """A function that scores a model on held-out sequences of the same data sets; None if the configuration has none. A
    UserError if a held-out sequence is trained on, or they cannot be opened."""
    if config.TRAIN.VALIDATION_INTERVAL == 0 or not distributed.is_main:
        return None
    from seqtrack.evaluation.run import refuse_leak, validate  # start-up time: only validation needs a tracker
    from seqtrack.tracking.load import tracker_settings  # as above

    held_out = [one for source in open_sources(config, data_dir, split="test") for one in source.sequences]
    wanted = min(config.TRAIN.VALIDATION_SEQUENCES or len(held_out), len(held_out))
    held_out = [held_out[i * len(held_out) // wanted] for i in range(wanted)]  # spread over the classes
    refuse_leak(held_out, (one for source in trained_on if not source.is_images for one in source.sequences))
    settings = tracker_settings(config, dataset=config.DATA.TRAIN.DATASETS_NAME[0])

    def score(model: nn.Module, stop: StopRequest) -> dict[str, float] | None:
        return validate(cast(SeqTrack, model), held_out, settings, stopped=lambda: stop.is_set)

    return score
