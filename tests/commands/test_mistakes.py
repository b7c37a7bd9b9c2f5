"""What users get wrong: nothing starts, the exit code is 2, the error has a code and the nearest name or the reason."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

from seqtrack.cli import main
from seqtrack.config.environment import VARIABLES

# Words of the command line; variables; the error's code; what the message names.
MISTAKES: list[tuple[str, dict[str, str], str, str]] = [
    # Commands, actions and options.
    ("trian", {}, "cli.command", "train"),
    ("train_phase1", {}, "cli.command", "train"),
    ("evalute --checkpoint last", {}, "cli.command", "evaluate"),
    ("data chekc", {}, "cli.argument", "did you mean check?"),
    ("hub chek", {}, "cli.argument", "did you mean check?"),
    ("upload stauts", {}, "cli.argument", "did you mean status?"),
    ("evaluate --split tets", {}, "cli.argument", "did you mean test?"),
    ("train --epcohs 3", {}, "cli.argument", "--epochs"),
    ("plan --batchsize 4", {}, "cli.argument", "--batch-size"),
    ("verify a b --ouput c", {}, "cli.argument", "--output"),
    ("track", {}, "cli.argument", "VIDEO"),
    ("track . --box 1,2,3,4 --precision fp61", {}, "cli.argument", "did you mean fp16?"),
    *((f"plan --memory-gib {word}", {}, "cli.argument", "--memory-gib") for word in ("nan", "1e400", "1e300", "-1")),
    *((f"plan --disk-gib {word}", {}, "cli.argument", "--disk-gib") for word in ("inf", "1_0", "-0.5", "0x10")),
    *((f"track . --frames {word}", {}, "cli.argument", "--frames") for word in ("1_0", "0", "-3", "1.0", "\u0663")),
    ("evaluate --concurrent 0", {}, "cli.argument", "--concurrent"),
    ("data show --count 0", {}, "cli.argument", "--count"),
    ("data show --first -1", {}, "cli.argument", "--first"),
    ("audit . --segments \u0663", {}, "cli.argument", "--segments"),
    ("restore --epoch 1_0", {}, "cli.argument", "--epoch"),
    ("hub download --epoch 0", {}, "cli.argument", "--epoch"),
    ("plan --gpu T44", {}, "plan.unknown_gpu", "did you mean T4?"),
    # Settings.
    ("train TRAIN.LR", {}, "cli.override", "TRAIN.LR=2e-4"),
    ("train TRAIN.LRR=2", {}, "config.unknown_key", "TRAIN.LR"),
    ("train TRAIN.LR=1e-4 --config demo TRAIN.LRR=2", {}, "config.unknown_key", "TRAIN.LR"),
    ("train", {"OVERRIDES": "TRAIN.LRR 2"}, "config.unknown_key", "TRAIN.LR"),
    ("train", {"OVERRIDES": "TRAIN.LR"}, "variable.invalid_value", "KEY VALUE"),
    ("train TRAIN.LR=2", {"OVERRIDES": "TRAIN.LR"}, "variable.invalid_value", "KEY VALUE"),
    ("train", {"OVERRIDES": "TRAIN.AMP bf61"}, "config.invalid_value", "did you mean bf16?"),
    ("train --config demoo", {}, "config.unknown_experiment", "demo"),
    ("plan", {"CONFIG": "demoo"}, "config.unknown_experiment", "demo"),
    ("train --epochs three", {}, "variable.invalid_value", "EPOCHS"),
    ("train LR=1", {}, "config.unknown_key", "did you mean TRAIN.LR?"),
    ("train EPOCHS=3", {}, "config.unknown_key", "did you mean TRAIN.EPOCH?"),
    ("train --epochs 0", {}, "variable.invalid_value", "at least 1"),
    ("train", {"PHASE": "3"}, "variable.invalid_value", "1, 2"),
    ("train", {"NNODES": "2"}, "launch.no_rendezvous", "RENDEZVOUS"),
    ("train", {"CONFIG": "mine.yaml"}, "config.unreadable", "mine.yaml"),
    ("train --phase 2 --resume-epoch 99", {}, "config.resume_epoch", "99"),
    ("train", {"SEED": "abc"}, "variable.invalid_value", "4294967295"),
    ("train", {"DEVICE": "gpu"}, "variable.invalid_value", "cuda"),
    ("train", {"RESUME_EPOCH": "latest"}, "variable.invalid_value", "RESUME_EPOCH"),
    ("train", {"RESUME_EPOCH": "latestt"}, "variable.invalid_value", "RESUME_EPOCH"),
    ("train", {"DATASET": "lasott", "CLASSES": "book"}, "data.unknown_data_set", "did you mean LASOT?"),
    ("train", {"DATASET": "lasot", "CLASSES": "Book"}, "data.unknown_class", "did you mean book?"),
    ("data download --classes Book", {}, "data.unknown_class", "did you mean book?"),
    # The Hub.
    ("train", {"HF_REPO": "me/x", "HF_TOKEN_PATH": "/nope/token"}, "token.unreadable", "/nope/token"),
    ("train", {"HF_REPO": "me/x", "HF_TOKEN_PATH": "/"}, "token.unreadable", "HF_TOKEN_PATH"),
    ("train", {"HF_REPO": "me/x", "HF_TOKEN_PATH": "/dev/null"}, "token.malformed", "HF_TOKEN_PATH"),
    ("train", {"HF_REPO": "me/x"}, "token.missing", "HF_TOKEN"),
    ("train", {"HF_REPO": "x"}, "variable.invalid_value", "owner/name"),
    ("train", {"DATASET": "lasot", "CLASSES": "book", "HF_ENDPOINT": "http://127.0.0.1:9"}, "download.list", "refused"),
    ("train", {"HF_ENDPOINT": "huggingface.co"}, "variable.invalid_value", "https://"),
    ("train", {"UPLOAD_TARGET": "/mnt/x"}, "variable.invalid_value", "folder:/mnt/backup"),
    # Files, and runs that do not exist yet.
    ("verify", {}, "verify.not_a_run", "`seqtrack train --phase 1` trains it"),
    ("verify a b c", {}, "verify.not_two_runs", "3"),
    ("report", {}, "report.nothing", "OUTPUT_DIR"),
    ("evaluate", {}, "checkpoint.none", "train first"),
    ("evaluate --checkpoint lats", {}, "checkpoint.option", "last"),
    ("audit nowhere", {}, "audit.no_run", "nowhere"),
    ("reproduce hf://x", {}, "audit.address", "hf://owner/name"),
    ("track none.mp4 --box 1,2,3,4", {}, "video.no_source", "none.mp4"),
    ("track . --box 1,2,3", {}, "data.no_frames", "."),
    ("export none.safetensors -o x.pth.tar", {}, "checkpoint.missing", "none.safetensors"),
]
DOTENV = {"CONFG": "CONFIG", "EPOCH": "EPOCHS", "BATCHSIZE": "BATCH_SIZE", "HF_TOKENPATH": "HF_TOKEN_PATH"}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's own settings, in an empty folder."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in VARIABLES})
    monkeypatch.chdir(tmp_path)


def code_of(words: str) -> int:
    """The exit code as the shell gets it: argparse ends by SystemExit."""
    try:
        return main(words.split())
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.mark.parametrize(("words", "variables", "code", "named"), MISTAKES)
def test_a_mistake_ends_with_code_2_and_states_what_was_meant(
    words: str, variables: dict[str, str], code: str, named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    os.environ.update(variables)
    assert code_of(words) == 2
    error = capsys.readouterr().err
    assert re.findall(r"error \[(.+?)\]", error)[-1] == code, error
    assert named in error
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "words",
    ["data prepare", "upload --once", "upload status", "hub check", "verify", "report", "evaluate",
     "restore --epoch 1", "reproduce a", "audit a", "plan --gpu T4", "submit --dataset got10k_test"],
)  # fmt: skip
def test_a_command_that_does_not_train_ignores_the_latest_epoch(
    words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ended = []
    for epoch in ("", " latest "):
        (tmp_path / repr(epoch)).mkdir()
        os.chdir(tmp_path / repr(epoch))
        os.environ.update(RESUME_EPOCH=epoch, UPLOAD_TARGET=f"folder:{tmp_path}/target", DATASET="demo")
        ended.append((code_of(words), re.findall(r"error \[(.+?)\]", capsys.readouterr().err)))
    assert ended[0] == ended[1]
    assert "variable.invalid_value" not in ended[0][1]


@pytest.mark.parametrize("name", DOTENV)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_misspelt_variable_is_an_error(
    name: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if place == ".env":
        (tmp_path / ".env").write_text(f"{name}=3\n")
    else:
        os.environ[name] = "3"
    assert code_of("plan") == 2
    error = capsys.readouterr().err
    assert "[variable.unknown]" in error and f"did you mean {DOTENV[name]}?" in error


def test_the_key_on_the_command_line_takes_precedence_over_the_same_one_in_overrides(
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.environ["OVERRIDES"] = "TRAIN.LR 1e-3 TRAIN.BATCH_SIZE 4"
    assert code_of("plan --config demo TRAIN.LR=none") == 2
    assert re.findall(r"error \[(.+?)\]", capsys.readouterr().err) == ["config.invalid_value"]
    assert os.environ["OVERRIDES"] == "TRAIN.BATCH_SIZE 4 TRAIN.LR none"


@pytest.mark.parametrize(("job", "nearest"), [("train_phase1", "train-phase1"), ("evalute", "evaluate")])
def test_a_misspelt_job_is_refused_with_the_nearest_one(job: str, nearest: str, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "docker" / "entrypoint"), "--root", str(tmp_path), job]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and f"did you mean {nearest}?" in done.stderr
