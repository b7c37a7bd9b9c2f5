"""GOT-10k's two training sets: all of it, and what is not in VOT's challenge."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.makers import make_got10k
from seqtrack.cli import main
from seqtrack.data.sources import describe, open_source
from seqtrack.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_got10k(folder)
    return folder


@pytest.fixture
def data_dir(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "data")


def names(data_dir: Path, dataset: str, split: str = "train") -> list[str]:
    return [one.name[-6:] for one in open_source(dataset, data_dir, classes=(), split=split).sequences]


def test_the_list_selects_training_sequences_by_index_and_leaves_the_test_split_alone(data_dir: Path) -> None:
    vot_list = data_dir / "got10k" / "got10k_vot_train_split.txt"
    assert names(data_dir, "GOT10K_train_full") == ["000001", "000002", "000003"]
    assert names(data_dir, "GOT10K_vottrain") == ["000001", "000003"]
    assert names(data_dir, "GOT10K_vottrain", "test") == names(data_dir, "GOT10K_train_full", "test")
    vot_list.write_text("0\n1\n2\n")
    both = [open_source(name, data_dir, classes=(), split="train") for name in ("GOT10K_vottrain", "GOT10K_train_full")]
    assert describe(both[:1])["digest"] != describe(both[1:])["digest"], "two data sets, even with the same sequences"
    vot_list.unlink()
    assert names(data_dir, "GOT10K_train_full")
    with pytest.raises(UserError, match=vot_list.name) as caught:
        names(data_dir, "GOT10K_vottrain")
    assert caught.value.code == "file.missing"


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("got10k_vot_train_split.txt", b"0\n3\n", "file.entry"),
        ("got10k_vot_train_split.txt", b"0\n0\n", "file.duplicate"),
        ("got10k_vot_train_split.txt", b"\n", "file.empty"),
        ("train/list.txt", b"\xff\xfe", "file.not_text"),
        ("train/list.txt", b"", "data.no_sequence"),
        ("train/list.txt", b"../val\n", "file.name"),
        ("train/GOT-10k_Train_000001/absence.label", None, "file.missing"),
        ("train/GOT-10k_Train_000001/cover.label", b"8\n" * 23, "file.count"),
        ("train/GOT-10k_Train_000001/absence.label", b"0\nno\n", "file.entry"),
        ("train/GOT-10k_Train_000001/groundtruth.txt", b"1,2\n" * 24, "file.columns"),
    ],
)
def test_a_malformed_file_is_named(data_dir: Path, file: str, content: bytes | None, code: str) -> None:
    path = data_dir / "got10k" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        names(data_dir, "GOT10K_train_full" if file == "train/list.txt" else "GOT10K_vottrain")
    assert caught.value.code == code and path.name in caught.value.problems[0]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("train/list.txt", lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n\r\n")),
        ("got10k_vot_train_split.txt", lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b" \r\n")),
        ("train/GOT-10k_Train_000001/absence.label", lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b".0\r\n")),
        ("train/GOT-10k_Train_000001/cover.label", lambda data: data.replace(b"\n", b",")),
        ("train/GOT-10k_Train_000001/groundtruth.txt", lambda data: b"\xef\xbb\xbf" + data.replace(b",", b", ")),
        ("train/GOT-10k_Train_000001/meta_info.ini", lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")),
    ],
)
def test_another_spelling_is_the_same_data(data_dir: Path, file: str, change: Callable[[bytes], bytes]) -> None:
    before = describe([open_source("GOT10K_vottrain", data_dir, classes=(), split="train")])
    path = data_dir / "got10k" / file
    path.write_bytes(change(path.read_bytes()))
    assert describe([open_source("GOT10K_vottrain", data_dir, classes=(), split="train")]) == before


def test_a_sequence_without_a_description_has_a_class_of_its_own(data_dir: Path) -> None:
    (data_dir / "got10k" / "train" / "GOT-10k_Train_000002" / "meta_info.ini").unlink()
    opened = open_source("GOT10K_train_full", data_dir, classes=(), split="train").sequences
    classes = [one.class_name for one in opened]
    assert classes[0] == classes[2] == "bear" and classes[1] not in ("bear", "sloth")


def test_prepare_counts_the_sequences_and_refuses_what_cannot_be_downloaded(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"DATASET": "got10k_vottrain", "CONFIG": "seqtrack_b256_got"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DATA_DIR", str(data_dir))
    assert main(["data", "prepare"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["GOT10K_VOTTRAIN:", "2"]
    monkeypatch.setenv("DATA_DIR", str(data_dir / "elsewhere"))
    assert main(["data", "prepare"]) == 2
    assert "error [data.no_folder]" in capsys.readouterr().err
