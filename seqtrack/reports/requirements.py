"""The functions that implement each requirement, with file and line, which a report has to list.

The table names functions; their lines are looked up in the source for each report, so that they are never out of date.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

# requirement: functions as module:qualified name
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "The model: encoder, decoder, token head": (
        "model.build:build_model",
        "model.seqtrack:SeqTrack.encode",
        "model.seqtrack:SeqTrack.decode",
        "model.seqtrack:SeqTrack.generate",
    ),
    "Boxes as tokens, and the loss": (
        "tokens:boxes_to_tokens",
        "tokens:target_sequences",
        "model.loss:sequence_loss",
        "model.loss:teacher_forced_iou",
    ),
    "Data sets, classes and splits": (
        "data.sources:open_source",
        "data.lasot:open_lasot",
        "data.lasot:draw_classes",
    ),
    "Samples from a fixed seed": ("seeding:sample_generator", "data.dataset:TrackingDataset.sample"),
    "Randomness of a step from a fixed seed": ("seeding:step_seed", "training.train_step:TrainStep"),
    "Log line every 50 samples": ("runtime.metrics_log:interval_line", "runtime.metrics_log:RunLog.interval"),
    "Checkpoint after every epoch": ("training.checkpointer:Checkpointer", "checkpoints.store:write_checkpoint"),
    "Everything that is state is saved": ("training.state:TrainState", "training.state:RandomStates"),
    "Resume from an epoch": (
        "training.resume:find_run",
        "training.resume:load_state",
        "checkpoints.resume_point:find_resume_point",
    ),
    "Phase 2 is phase 1": ("reports.compare:compare_runs", "reports.verdict:certificate"),
    "Upload to the Hub": ("uploads.uploader:Uploader",),
    "Tracking": ("tracking.tracker:BatchTracker.track", "evaluation.run:track_sequences"),
    "Evaluation by LaSOT's protocol": ("evaluation.metrics:frame_errors", "evaluation.metrics:score"),
    "This report": ("reports.report:write_report",),
}


@dataclass(frozen=True)
class Place:
    """Where a function is: its file relative to the repository, its line from 1."""

    function: str
    file: str
    line: int


def find_places() -> dict[str, list[Place]]:
    """The table with every function found."""
    return {requirement: [find(name) for name in names] for requirement, names in REQUIREMENTS.items()}


def find(name: str) -> Place:
    """The place of `module:qualified.name`, found in the source without importing it.

    Raises:
        LookupError: it does not exist.
    """
    module, _, qualified = name.partition(":")
    path = _PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    node: ast.AST = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    for part in qualified.split("."):
        found = [one for one in getattr(node, "body", ()) if getattr(one, "name", None) == part]
        if not found:
            raise LookupError(f"{name}: {path} has no {part}")
        node = found[0]
    return Place(qualified, path.relative_to(_PACKAGE.parent).as_posix(), node.lineno)  # type: ignore[attr-defined]
