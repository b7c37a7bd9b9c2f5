"""The names of an output folder's files and folders that several modules use, each defined once.

    output/
      phase_1/  phase_2/
        run.json  config.yaml  environment.json  dataset.json
        checkpoints/  logs/  plots/  evaluation/
      comparison/
      .uploads/  .fetched/

`docs/formats.md` describes the contents. Knows no file format and touches no file.
"""

import re
from pathlib import Path

PHASES = ("phase_1", "phase_2")
# In a phase's folder.
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
DATASET_FILE = "dataset.json"
LOCK_FILE = ".lock"
AUDIT_FILE = "audit.json"
CHECKPOINTS = "checkpoints"
LOGS = "logs"
PLOTS = "plots"
EVALUATION = "evaluation"
# In `checkpoints`: what a restart from an earlier epoch moved away, one folder per restart.
SUPERSEDED = "superseded"
# In `logs`.
METRICS_FILE = "metrics.jsonl"
DAMAGED_METRICS_FILE = "metrics-damaged.jsonl"
TENSORBOARD = "tensorboard"
# In `plots`.
SAMPLES_FILE = "samples.png"
# In `evaluation`.
EVALUATION_FILE = "evaluation.json"
TRACKING_FILE = "tracking.png"  # in its `plots`
BOXES = "boxes"
INFERENCE_LOG = "inference.log"
# In the output folder.
HAND_IN_FILE = "hand-in.zip"
COMPARE = "compare"  # of evaluations; `comparison` is that of two phases
COMPARISON = "comparison"
CERTIFICATE_FILE = "certificate.json"
UPLOADS = ".uploads"
# In `.uploads`.
STATUS_FILE = "status.json"
# Checkpoints brought from the Hub to resume from; hidden, so that the sidecar does not send them back.
FETCHED = ".fetched"

# What is handed in, as patterns below the output folder: everything but checkpoint files.
HAND_IN_FILES = (
    "report.*", f"{COMPARE}/*", "comparison/*", "phase_[12]/*.json", f"phase_[12]/{CONFIG_FILE}",
    f"phase_[12]/{CHECKPOINTS}/*.json", f"phase_[12]/{LOGS}/*.log", f"phase_[12]/{LOGS}/{METRICS_FILE}",
    f"phase_[12]/{PLOTS}/*.png", f"phase_[12]/{EVALUATION}/*", f"phase_[12]/{EVALUATION}/{PLOTS}/*.png",
    f"phase_[12]/{EVALUATION}/{BOXES}/*/*",
)  # fmt: skip

_CHECKPOINT = re.compile(r"SEQTRACK_(ep|step)([0-9]+)\.(?:safetensors|json)")


def phase_name(phase: int) -> str:
    """Folder name of a phase, which its log lines use as well."""
    return f"phase_{phase}"


def metrics_path(run: Path) -> Path:
    """The records of the run in a phase's folder."""
    return run / LOGS / METRICS_FILE


def log_path(run: Path, config: str) -> Path:
    """The human-readable log of the run in a phase's folder, named after its experiment."""
    stem = Path(config).stem.encode()[:200].decode(errors="ignore")  # a file name has 255 bytes at most
    return run / LOGS / f"seqtrack-{stem}.log"


def epoch_name(epoch: int) -> str:
    """File name of the checkpoint after `epoch`; the authors' stem."""
    return f"SEQTRACK_ep{epoch:04d}.safetensors"


def step_name(step: int) -> str:
    """File name of a checkpoint inside an epoch, after optimizer step `step` of the run."""
    return f"SEQTRACK_step{step:08d}.safetensors"


def parse_checkpoint_name(name: str) -> tuple[str, int] | None:
    """("ep", epoch) or ("step", step) for the name of a checkpoint file or its manifest; None for any other name."""
    match = _CHECKPOINT.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def manifest_path(checkpoint: Path) -> Path:
    """The manifest next to a checkpoint file."""
    return checkpoint.with_suffix(".json")
