"""Data in another spelling give the same training run; unusable data end it before its folder is created."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from data.makers import cmyk, huge, jpeg, picture, write_sequence
from seqtrack.checkpoints.safetensors_io import read_json_object
from seqtrack.cli import main

TINY = {
    "MODEL": {
        "HIDDEN_DIM": 32, "BINS": 32,
        "ENCODER": {
            "TYPE": "vit_custom", "PATCH_SIZE": 16, "EMBED_DIM": 32, "DEPTH": 1, "NUM_HEADS": 2, "POS_INIT": "sincos2d",
            "PRETRAIN_TYPE": "scratch",
        },
        "DECODER": {"NHEADS": 2, "DIM_FEEDFORWARD": 32, "DEC_LAYERS": 1},
    },
    "TRAIN": {"EPOCH": 2, "BATCH_SIZE": 4, "NUM_WORKER": 0, "NUM_THREADS": 1},
    "DATA": {
        "TRAIN": {"DATASETS_NAME": ["LASOT"], "DATASETS_RATIO": [1], "SAMPLE_PER_EPOCH": 4},
        "SEARCH": {"SIZE": 48}, "TEMPLATE": {"SIZE": 32},
    },
    "TEST": {"SEARCH_SIZE": 48, "TEMPLATE_SIZE": 32, "EPOCH": 2},
}  # fmt: skip


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Callable[..., int]:
    """Train a tiny model on `tmp_path/data` into a folder of this name."""
    for number in (1, 2):
        write_sequence(tmp_path / "data" / "book" / f"book-{number}")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    for name, value in {"DATASET": "lasot", "CONFIG": "tiny.yaml", "DEVICE": "cpu", "DATA_DIR": "data"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(output: str, **environment: str) -> int:
        for name, value in {"OUTPUT_DIR": output, **environment}.items():
            monkeypatch.setenv(name, value)
        return main(["train"])

    return run


def digest(output: str) -> str:
    return str(read_json_object(Path(output) / "phase_1" / "checkpoints" / "SEQTRACK_ep0002.json")["sha256"])


def test_other_spellings_and_hidden_files_train_the_same_checkpoint(train: Callable[..., int]) -> None:
    assert train("clean") == 0
    assert read_json_object(Path("clean/phase_1/dataset.json"))["frames_covered_by"] == "size"
    folder = Path("data/book/book-1")
    (folder / "full_occlusion.txt").write_bytes(b"\xef\xbb\xbf" + b"0\r\n" * 24)
    (folder / "out_of_view.txt").write_text("0.0, " * 24)
    (folder / "groundtruth.txt").write_bytes((folder / "groundtruth.txt").read_bytes().replace(b",", b"\t"))
    (folder / "img" / "._00000001.jpg").write_bytes(b"\0\5\x16\7")
    assert train("other") == 0
    assert digest("other") == digest("clean")


def test_unusable_frames_end_it_before_a_folder_is_made(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    images = Path("data/book/book-2/img")
    for number, change in ((5, cmyk), (6, cmyk), (7, huge)):
        path = images / f"{number:08d}.jpg"
        path.write_bytes(change(path.read_bytes()))
    assert train("output") == 2
    said = capsys.readouterr().err
    assert said.count("error [data.frame]") == 3 and all(f"{number:08d}.jpg" in said for number in (5, 6, 7))
    assert not Path("output").exists()


def test_a_resume_after_frames_were_replaced_names_the_data_and_so_does_verify(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("output") == 0
    shutil.copytree("output", "again")
    (Path("data/book/book-1/img/00000009.jpg")).write_bytes(jpeg(picture(77)))
    capsys.readouterr()
    assert train("output", PHASE="2", RESUME_EPOCH="1") == 2
    assert "error [data.changed]" in capsys.readouterr().err
    assert not Path("output/phase_2").exists()
    assert train("output", PHASE="1", RESUME_EPOCH="1") == 2
    assert "error [data.changed]" in capsys.readouterr().err
    # A separate run on the changed images differs, and `verify` names the cause.
    assert train("other", PHASE="1", RESUME_EPOCH="") == 0
    capsys.readouterr()
    code = main(["verify", "again/phase_1", "other/phase_1"])
    said = capsys.readouterr().out
    assert code == 1 and "data_digest" in said and said.split()[-1] == "differs"


def test_result_files_are_scored_without_torch(tmp_path: Path) -> None:
    for number in (1, 2):
        write_sequence(tmp_path / "data" / "cat" / f"cat-{number}", 4)
        (tmp_path / "T").mkdir(exist_ok=True)
        shutil.copy(tmp_path / f"data/cat/cat-{number}/groundtruth.txt", tmp_path / "T" / f"cat-{number}.txt")
    for name in ("training", "testing"):
        (tmp_path / "data" / f"{name}_set.txt").write_text("cat-1\ncat-2\n" if name == "testing" else "")
    script = (
        "import sys; from seqtrack.cli import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'timm', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "evaluate", "--results", "T", "-o", "out", "--dataset", "lasot"],
        cwd=tmp_path, capture_output=True, text=True, timeout=250, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "DATA_DIR": "data"},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
