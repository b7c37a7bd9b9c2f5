"""The one table of environment variables: default, meaning, who reads it, and its form.

A part that reads another variable adds its line here; `docs/configuration.md` is made from this table. Every value is
checked when any command starts, so a mistake shows before work begins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtrack.config import forms


@dataclass(frozen=True)
class Variable:
    """One environment variable: `default` is text as a user would write it, empty for none.

    `read` turns the text into a value and raises ValueError with what was expected. The value of a `secret` is never
    shown, in messages neither.
    """

    default: str
    meaning: str
    reader: str
    read: Callable[[str], Any]
    secret: bool = False


VARIABLES: dict[str, Variable] = {
    "PHASE": Variable("1", "1 trains from the start, 2 resumes phase 1", "train", forms.one_of("1", "2")),
    "RESUME_EPOCH": Variable(
        "",
        "epoch after which the run goes on; unset, phase 1 starts at the beginning and phase 2 at epoch 3",
        "train",
        forms.whole(1),
    ),
    "CONFIG": Variable(
        "",
        "experiment, or a path that ends in .yaml; unset, demo for the demo data set, else seqtrack_b256",
        "train",
        forms.text,
    ),
    "DATASET": Variable(
        "demo",
        "data sets, separated by commas: demo, lasot, got10k_train_full, ...; unset with a CONFIG file of your "
        "own, those that the file names",
        "train, data, evaluate",
        forms.names,
    ),
    "CLASSES": Variable(
        "", "classes, separated by commas; unset, those of CONFIG", "train, data, evaluate", forms.names
    ),
    "DATA_DIR": Variable("./data", "folder of the data sets", "train, data, evaluate", Path),
    "OUTPUT_DIR": Variable("./output", "folder that holds phase_1, phase_2 and comparison", "every command", Path),
    "SEED": Variable("", "TRAIN.SEED", "train", forms.whole(0, 2**32 - 1)),
    "EPOCHS": Variable("", "TRAIN.EPOCH and TEST.EPOCH", "train", forms.whole(1)),
    "BATCH_SIZE": Variable("", "TRAIN.BATCH_SIZE: samples of a step over all processes", "train", forms.whole(1)),
    "OVERRIDES": Variable("", "`KEY VALUE KEY VALUE` for any key, quoted as in a shell", "train", forms.pairs),
    "DEVICE": Variable("auto", "auto, cuda or cpu", "train, track, evaluate", forms.one_of("auto", "cuda", "cpu")),
    "NPROC": Variable("1", "processes of a run; auto starts one a GPU", "train", forms.count_or_auto),
    "HF_REPO": Variable(
        "", "repository owner/name; unset, nothing is uploaded", "train, upload, hub", forms.repository
    ),
    "HF_TOKEN": Variable(
        "", "access token; a file is safer, see HF_TOKEN_PATH", "upload, hub", forms.token, secret=True
    ),
    "HF_TOKEN_PATH": Variable(
        "", "file with the access token, read anew at each use; wins over HF_TOKEN", "upload, hub", Path
    ),
    "HF_ENDPOINT": Variable("", "address of the Hub; unset, huggingface.co", "upload, hub", forms.address),
    "HF_PRIVATE": Variable("true", "whether a repository that is made is private", "upload, hub", forms.switch),
    "UPLOAD_TARGET": Variable("", "another target than HF_REPO, such as folder:/mnt/backup", "upload", forms.target),
    "SEQTRACK_TEST_DATA": Variable("", "folder of real test data", "tests", Path),
    "SEQTRACK_GOLDENS": Variable("", "folder of reference outputs", "tests", Path),
}
