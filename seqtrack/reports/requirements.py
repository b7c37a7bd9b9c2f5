"""The functions that implement each requirement, which a report has to list with file and line."""

import ast
from pathlib import Path
from typing import NamedTuple

_PACKAGE = Path(__file__).resolve().parents[1]

# requirement: functions as module:qualified name
REQUIREMENTS = {
    "The model: encoder, decoder, token head": [
        "model.build:build_model",
        *(f"model.seqtrack:SeqTrack.{name}" for name in ("encode", "decode", "generate")),
    ],
    "Boxes as tokens, and the loss": [
        *(f"tokens:{name}" for name in ("boxes_to_tokens", "target_sequences")),
        *(f"model.loss:{name}" for name in ("sequence_loss", "teacher_forced_iou")),
    ],
    "Data sets, classes and splits": ["data.sources:open_source", "data.lasot:open_lasot", "data.lasot:draw_classes"],
    "Samples from a fixed seed": ["seeding:sample_generator", "data.dataset:TrackingDataset.sample"],
    "Randomness of a step from a fixed seed": ["seeding:step_seed", "training.train_step:TrainStep"],
    "Log line every 50 samples": ["runtime.metrics_log:interval_line", "runtime.metrics_log:RunLog.interval"],
    "Checkpoint after every epoch": ["training.checkpointer:Checkpointer", "checkpoints.store:write_checkpoint"],
    "Everything that is state is saved": ["training.state:TrainState", "training.state:RandomStates"],
    "Resume from an epoch": [
        *(f"training.resume:{name}" for name in ("find_run", "load_state")),
        "checkpoints.resume_point:find_resume_point",
    ],
    "Phase 2 is phase 1": ["reports.compare:compare_runs", "reports.verdict:conclude"],
    "Upload to the Hub": ["uploads.uploader:Uploader"],
    "Tracking": ["tracking.tracker:BatchTracker.track", "evaluation.run:track_sequences"],
    "Evaluation by LaSOT's protocol": ["evaluation.metrics:frame_errors", "evaluation.metrics:score"],
    "This report": ["reports.report:write_report"],
}


class Place(NamedTuple):
    """Where a function is: its file relative to the repository, its line from 1."""

    function: str
    file: str
    line: int


def find(name: str) -> Place:
    """The place of `module:qualified.name`, looked up in the source, so that it is never out of date.

    Raises:
        LookupError: it does not exist.
    """
    module, _, qualified = name.partition(":")
    path = _PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    node: ast.AST = ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
    for part in qualified.split("."):
        found = [one for one in getattr(node, "body", ()) if getattr(one, "name", None) == part]
        if not found:
            raise LookupError(f"{name}: {path} has no {part}")
        node = found[0]
    return Place(qualified, path.relative_to(_PACKAGE.parent).as_posix(), node.lineno)  # type: ignore[attr-defined]
