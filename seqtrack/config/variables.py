"""The one table of environment variables: default, meaning, who reads it, and its form.

A part that reads another variable adds its line here; `docs/configuration.md` is made from this table. Every value is
checked when any command starts, so a mistake shows before work begins.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
    "PHASE": Variable(
        "1", "1 trains from the start, 2 resumes phase 1", "train, track, evaluate, hub", forms.one_of("1", "2")
    ),
    "RESUME_EPOCH": Variable(
        "",
        "epoch after which the run goes on; unset, phase 1 starts at the beginning and phase 2 at epoch 3; the "
        "entrypoint takes `newest` as well: the last one on the Hub, or the beginning",
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
        "data sets, separated by commas: demo, lasot, got10k_train_full, got10k_vottrain; unset with a CONFIG file of "
        "your own, those that the file names",
        "train, data, evaluate",
        forms.names,
    ),
    "CLASSES": Variable(
        "", "classes, separated by commas; unset, those of CONFIG", "train, data, evaluate", forms.names
    ),
    "DATA_DIR": Variable("./data", "folder of the data sets", "train, data, evaluate", forms.path),
    "OUTPUT_DIR": Variable(
        "./output", "folder that holds phase_1, phase_2 and comparison", "every command", forms.path
    ),
    "SEED": Variable("", "TRAIN.SEED", "train", forms.whole(0, 2**32 - 1)),
    "EPOCHS": Variable("", "TRAIN.EPOCH and TEST.EPOCH", "train", forms.whole(1)),
    "BATCH_SIZE": Variable("", "TRAIN.BATCH_SIZE: samples of a step over all processes", "train", forms.whole(1)),
    "OVERRIDES": Variable("", "`KEY VALUE KEY VALUE` for any key, quoted as in a shell", "train", forms.pairs),
    "DEVICE": Variable("auto", "auto, cuda or cpu", "train, track, evaluate", forms.one_of("auto", "cuda", "cpu")),
    "NPROC": Variable("1", "processes of a run; auto starts one a GPU", "train", forms.count_or_auto),
    "NNODES": Variable("1", "machines of a run", "train", forms.whole(1, 1024)),
    "NODE_RANK": Variable("0", "this machine's number, from 0", "train", forms.whole(0, 1023)),
    "RENDEZVOUS": Variable("", "host:port of machine 0, where machines meet", "train", forms.host_port),
    "MAX_RESTARTS": Variable(
        "0", "times that a run of several processes starts again when one dies", "train", forms.whole(0, 1000)
    ),
    "HF_REPO": Variable(
        "", "repository owner/name; unset, nothing is uploaded", "train, upload, hub", forms.repository
    ),
    "HF_TOKEN": Variable(
        "", "access token; a file is safer, see HF_TOKEN_PATH", "train, data, upload, hub", forms.token, secret=True
    ),
    "HF_TOKEN_PATH": Variable(
        "",
        "file with the access token, read anew at each use; wins over HF_TOKEN",
        "train, data, upload, hub",
        forms.path,
    ),
    "HF_ENDPOINT": Variable("", "address of the Hub; unset, huggingface.co", "train, data, upload, hub", forms.address),
    "HF_PRIVATE": Variable("true", "whether a repository that is made is private", "upload, hub", forms.switch),
    "HF_HUB_DISABLE_XET": Variable(
        "",
        "1 uploads over LFS alone, for a server that does not speak Xet; read by the Hub's client",
        "upload, hub",
        forms.switch,
    ),
    "UPLOAD_TARGET": Variable(
        "", "another target than HF_REPO, such as folder:/mnt/backup", "train, upload, hub", forms.target
    ),
    "UPLOAD_MIN_COMMIT_INTERVAL_S": Variable(
        "30",
        "least seconds between two commits; the Hub allows about 128 an hour",
        "upload",
        forms.number(0, 3600),
    ),
    "UPLOAD_BATCH_MB": Variable(
        "1024",
        "bytes in a commit, in MiB; a larger checkpoint goes alone",
        "upload",
        forms.number(0.001, 1e6),
    ),
    "UPLOAD_POLL_S": Variable(
        "2",
        "seconds between two looks at the output folder",
        "upload",
        forms.number(0.01, 3600),
    ),
    "UPLOAD_SETTLE_S": Variable(
        "5",
        "seconds for which a file without a manifest must stand still",
        "upload",
        forms.number(0, 3600),
    ),
    "UPLOAD_LOG_INTERVAL_S": Variable(
        "600",
        "longest wait of a growing log when no checkpoint takes it along",
        "upload",
        forms.number(0, 1e6),
    ),
    "UPLOAD_START_GRACE_S": Variable(
        "60",
        "least life of a watching sidecar, so that training can begin",
        "upload",
        forms.number(0, 1e6),
    ),
    "UPLOAD_GRACE_S": Variable(
        "60",
        "seconds after SIGTERM for the last files; below the container's grace",
        "upload",
        forms.number(0, 1e6),
    ),
    "UPLOAD_PATIENCE_S": Variable(
        "120",
        "seconds without progress after which `upload --once` gives up",
        "upload",
        forms.number(0, 1e6),
    ),
    "UPLOAD_DEADLINE_S": Variable(
        "180",
        "seconds for a batch, beside those for its bytes",
        "upload",
        forms.number(0.1, 1e6),
    ),
    "UPLOAD_LEAST_RATE_KB_S": Variable(
        "50",
        "slowest rate that a deadline counts with, in KiB/s",
        "upload",
        forms.number(0.01, 1e9),
    ),
    "UPLOAD_CONNECT_TIMEOUT_S": Variable("10", "seconds to wait for a connection", "upload", forms.number(0.01, 3600)),
    "UPLOAD_READ_TIMEOUT_S": Variable(
        "45",
        "seconds of silence after which a call is given up; doubles while that happens",
        "upload",
        forms.number(0.01, 3600),
    ),
    "UPLOAD_REQUEST_TRIES": Variable("3", "tries of one request within a batch", "upload", forms.whole(1, 6)),
    "UPLOAD_BACKOFF_S": Variable(
        "2",
        "first wait after a failure; doubles, with full jitter",
        "upload",
        forms.number(0, 3600),
    ),
    "UPLOAD_BACKOFF_CAP_S": Variable(
        "600",
        "longest wait after a failure that may pass by itself",
        "upload",
        forms.number(0, 1e6),
    ),
    "UPLOAD_SLOW_RETRY_S": Variable(
        "300",
        "wait after a failure that a person must mend",
        "upload",
        forms.number(0, 1e6),
    ),
    "UPLOAD_COMMIT_LIMIT_WAIT_S": Variable(
        "3600",
        "longest wait once the hourly limit of commits is reached",
        "upload",
        forms.number(0, 1e6),
    ),
    "UPLOAD_TRIES_BEFORE_APART": Variable(
        "3",
        "failures of one file alone, after which the others go without it",
        "upload",
        forms.whole(1, 1000),
    ),
    "UPLOAD_LAG_LIMIT_S": Variable(
        "3600",
        "age of the oldest file not yet uploaded at which the sidecar counts as unhealthy",
        "upload",
        forms.number(0, 1e9),
    ),
    "UPLOAD_HEARTBEAT_S": Variable(
        "60",
        "age of the status file at which the sidecar counts as dead",
        "upload",
        forms.number(0.1, 1e6),
    ),
    "UPLOAD_DRAIN_S": Variable(
        "3600",
        "seconds that a container without compose waits for its uploader after training",
        "entrypoint",
        forms.number(0, 1e7),
    ),
    "HEALTH_STALE_S": Variable(
        "1800",
        "seconds without a log line after which the container of a training run is unhealthy",
        "healthcheck",
        forms.number(1, 1e7),
    ),
    "SEQTRACK_TEST_DATA": Variable("", "folder of real test data", "tests", forms.path),
    "SEQTRACK_GOLDENS": Variable("", "folder of reference outputs", "tests", forms.path),
}
