"""GOT-10k's two training sets: all of it, and what VOT's challenge does not hold."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from seqtrack.cli import main
from seqtrack.data.sources import describe, open_source
from seqtrack.errors import USER_ERROR_EXIT_CODE, UserError

from .makers import make_got10k


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_got10k(folder)
    return folder


@pytest.fixture
def data_dir(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "data")


def names(data_dir: Path, dataset: str, split: str) -> list[str]:
    return [one.name[-6:] for one in open_source(dataset, data_dir, classes=(), split=split).sequences]


def test_the_list_chooses_training_sequences_by_their_place_and_leaves_the_test_split_alone(data_dir: Path) -> None:
    assert names(data_dir, "GOT10K_train_full", "train") == ["000001", "000002", "000003"]
    assert names(data_dir, "GOT10K_vottrain", "train") == ["000001", "000003"]
    assert names(data_dir, "GOT10K_vottrain", "test") == names(data_dir, "GOT10K_train_full", "test")
    (data_dir / "got10k" / "got10k_vot_train_split.txt").write_text("1\n")
    assert names(data_dir, "GOT10K_vottrain", "train") == ["000002"]


def test_the_two_sets_are_two_data_sets_even_where_they_hold_the_same(data_dir: Path) -> None:
    (data_dir / "got10k" / "got10k_vot_train_split.txt").write_text("0\n1\n2\n")
    sets = [open_source(name, data_dir, classes=(), split="train") for name in ("GOT10K_vottrain", "GOT10K_train_full")]
    assert describe(sets[:1])["digest"] != describe(sets[1:])["digest"]


def test_without_the_list_only_the_whole_set_is_served(data_dir: Path) -> None:
    (data_dir / "got10k" / "got10k_vot_train_split.txt").unlink()
    assert names(data_dir, "GOT10K_train_full", "train")
    with pytest.raises(UserError, match=r"got10k_vot_train_split\.txt") as caught:
        names(data_dir, "GOT10K_vottrain", "train")
    assert caught.value.code == "file.missing"


@pytest.mark.parametrize("text", ["0\n3\n", "-1\n", "0\n0\n", "\n"])
def test_a_list_that_names_no_place_is_refused(data_dir: Path, text: str) -> None:
    (data_dir / "got10k" / "got10k_vot_train_split.txt").write_text(text)
    with pytest.raises(UserError, match=r"got10k_vot_train_split\.txt"):
        names(data_dir, "GOT10K_vottrain", "train")


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("list.txt", b"\xff\xfe", "file.not_text"),
        ("list.txt", b"", "data.no_sequence"),
        ("list.txt", b"../val\n", "file.name"),
        ("GOT-10k_Train_000002/absence.label", None, "file.missing"),
        ("GOT-10k_Train_000002/cover.label", b"8\n" * 23, "file.count"),
        ("GOT-10k_Train_000002/absence.label", b"0\nno\n", "file.entry"),
        ("GOT-10k_Train_000002/groundtruth.txt", b"1,2\n" * 24, "file.columns"),
    ],
)
def test_a_malformed_file_is_named_and_no_sequence_is_served(
    data_dir: Path, file: str, content: bytes | None, code: str
) -> None:
    path = data_dir / "got10k" / "train" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        names(data_dir, "GOT10K_train_full", "train")
    assert caught.value.code == code and file.split("/")[-1] in caught.value.problems[0]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("train/list.txt", lambda data: b"\xef\xbb\xbf" + data),
        ("train/list.txt", lambda data: data.replace(b"\n", b"\r\n\r\n")),
        ("got10k_vot_train_split.txt", lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b" \r\n")),
        ("train/GOT-10k_Train_000001/absence.label", lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b".0\r\n")),
        ("train/GOT-10k_Train_000001/cover.label", lambda data: data.replace(b"\n", b",")),
        ("train/GOT-10k_Train_000001/groundtruth.txt", lambda data: b"\xef\xbb\xbf" + data.replace(b",", b", ")),
        ("train/GOT-10k_Train_000001/meta_info.ini", lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")),
    ],
)
def test_another_spelling_is_the_same_data(data_dir: Path, file: str, change: Callable[[bytes], bytes]) -> None:
    def opened() -> object:
        return describe([open_source("GOT10K_vottrain", data_dir, classes=(), split="train")])

    before = opened()
    path = data_dir / "got10k" / file
    path.write_bytes(change(path.read_bytes()))
    assert opened() == before


def test_a_sequence_without_its_description_is_of_a_class_of_its_own(data_dir: Path) -> None:
    (data_dir / "got10k" / "train" / "GOT-10k_Train_000002" / "meta_info.ini").unlink()
    classes = [
        one.class_name for one in open_source("GOT10K_train_full", data_dir, classes=(), split="train").sequences
    ]
    assert classes[0] == classes[2] == "bear"
    assert classes[1] not in ("bear", "sloth")


def test_prepare_says_what_is_there_and_refuses_what_cannot_be_downloaded(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_DIR", str(data_dir))
    monkeypatch.setenv("DATASET", "got10k_vottrain")
    monkeypatch.setenv("CONFIG", "seqtrack_b256_got")
    assert main(["data", "prepare"]) == 0
    assert "GOT10K_VOTTRAIN: 2 training sequences" in capsys.readouterr().out
    monkeypatch.setenv("DATA_DIR", str(data_dir / "elsewhere"))
    assert main(["data", "prepare"]) == USER_ERROR_EXIT_CODE
    assert "holds no GOT-10k" in capsys.readouterr().err
