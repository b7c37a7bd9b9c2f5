"""`data download` with the Hub's real client against a server on loopback: resumed, verified, kept in its folder."""

import os
import re
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from data.hub import LasotHub, serving, zip_of
from data.makers import refused, tree, write_sequence
from seqtrack.cli import main
from seqtrack.data import download
from seqtrack.data.download import download_classes
from seqtrack.data.lasot import open_lasot


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr(download, "_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences of two classes, as folders; book-3 and coin-3 are test sequences."""
    root = tmp_path_factory.mktemp("made")
    for name in ("book-1", "book-2", "book-3", "coin-1", "coin-2", "coin-3"):
        write_sequence(root / name[:4] / name, 22)
    return root


@pytest.fixture
def members(made: Path) -> dict[str, bytes]:
    return tree(made / "book")


@pytest.fixture
def hub(made: Path, members: dict[str, bytes], tmp_path: Path) -> Iterator[LasotHub]:
    nested = {f"coin/{name}": data for name, data in tree(made / "coin").items()}
    nested |= {"__MACOSX/coin/coin-1/img/._00000001.jpg": b"\0", "coin/README.md": b"read me", "coin/coin-1/x.py": b""}
    with serving() as hub:
        hub.put("book.zip", zip_of(members, tmp_path / "book.zip"))
        hub.put("coin.zip", zip_of(nested, tmp_path / "coin.zip"))
        yield hub


def _download(hub: LasotHub, data_dir: Path, *classes: str, **options: object) -> dict[str, list[str]]:
    hub.calls.clear()
    return download_classes(data_dir, classes or ("book",), hub=HfApi(endpoint=hub.endpoint, token=False), **options)  # type: ignore[arg-type]


def test_flat_and_nested_zips_are_unpacked_and_open(hub: LasotHub, made: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    added = _download(hub, data_dir, "book", "coin")
    assert added == {"book": ["book-1", "book-2", "book-3"], "coin": ["coin-1", "coin-2", "coin-3"]}
    for name in ("book", "coin"):
        assert tree(data_dir / "lasot" / name) == tree(made / name)
    assert sorted(path.name for path in (data_dir / "lasot").iterdir()) == [".download.lock", "book", "coin"]
    assert len(open_lasot(data_dir, classes=("book",), split="train")) == 2
    assert _download(hub, data_dir, sequences=("book-1", "book-2", "book-3")) == {"book": []}
    assert hub.calls == []


def test_only_the_requested_split_or_sequences_are_unpacked_and_existing_ones_are_left(
    hub: LasotHub, tmp_path: Path
) -> None:
    assert _download(hub, tmp_path / "b", split="test") == {"book": ["book-3"]}
    root = tmp_path / "data" / "lasot"
    mine = write_sequence(root / "book" / "book-1", 30, seed=99)
    before = tree(mine)
    assert _download(hub, tmp_path / "data", sequences=("book-1", "book-2")) == {"book": ["book-2"]}
    assert sorted(path.name for path in (root / "book").iterdir()) == ["book-1", "book-2"] and tree(mine) == before


def test_a_killed_download_is_continued_by_the_next_process(hub: LasotHub, tmp_path: Path) -> None:
    """The storage host ends early, then hangs, and the process is killed: what was received is not requested again."""
    hub.fail("storage-get", corrupt="size")
    hub.fail("storage-get", hang_s=60)
    root = tmp_path / "d" / "lasot"
    command = [sys.executable, "-m", "seqtrack", "data", "download", "--classes", "book"]
    place = {"HF_ENDPOINT": hub.endpoint, "DATA_DIR": str(tmp_path / "d"), "PYTHONPATH": str(Path.cwd())}
    child = subprocess.Popen(command, env={**os.environ, **place}, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(hub.ranges) < 2:
        assert time.monotonic() < end and child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    (part,) = root.glob(".book.zip.*.part")
    begun = f"bytes={part.stat().st_size}-"
    assert not (root / "book").exists()
    hub.clear()
    assert len(_download(hub, tmp_path / "d")["book"]) == 3
    assert hub.ranges == [begun] != ["bytes=0-"]


def test_a_hub_that_fails_is_asked_again_or_named_and_other_bytes_are_never_unpacked(
    hub: LasotHub, tmp_path: Path
) -> None:
    hub.fail("storage-get", status=503, times=2)
    assert len(_download(hub, tmp_path / "a")["book"]) == 3
    hub.fail("storage-get", status=403)
    assert refused(_download, hub, tmp_path / "b")[0].code == "download.failed"
    hub.fail("paths-info", status=404)
    error = refused(_download, hub, tmp_path / "b")[0]
    assert error.code == "download.list" and len(str(error)) < 500
    hub.fail("storage-get", corrupt="bytes")
    assert refused(_download, hub, tmp_path / "c")[0].code == "download.digest"
    assert [path.name for path in (tmp_path / "c" / "lasot").iterdir()] == [".download.lock"]
    assert len(_download(hub, tmp_path / "c")["book"]) == 3


def test_unknown_names_and_too_little_space_are_refused_before_anything_is_fetched(
    hub: LasotHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refused(_download, hub, tmp_path / "data", "boook")[0]
    assert error.code == "data.unknown_class" and re.search(r"\bbook\b", str(error))
    assert refused(_download, hub, tmp_path / "data", sequences=("coin-1",))[0].code == "data.unknown_sequence"
    assert hub.calls == []
    error = refused(_download, hub, tmp_path / "data", "kite", "book")[0]
    assert error.code == "download.no_zip" and "kite.zip" in str(error)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))  # type: ignore[attr-defined]
    assert refused(_download, hub, tmp_path / "data")[0].code == "data.no_space"
    assert hub.ranges == []


@pytest.mark.parametrize(
    ("name", "mode", "code"),
    [
        ("../evil.txt", 0, None), ("book-1/../../evil.txt", 0, None), ("book-1\\..\\evil.txt", 0, None),
        ("book-1/groundtruth.txt", 0, "zip.unpack"),  # twice
        ("book-1/img/00000023.jpg", stat.S_IFLNK | 0o777, "data.frame_count"),  # unpacked as a file
    ],
)  # fmt: skip
def test_a_hostile_member_never_leaves_the_folder(
    hub: LasotHub, members: dict[str, bytes], tmp_path: Path, name: str, mode: int, code: str | None
) -> None:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    zip_of(members, tmp_path / "evil.zip")
    with zipfile.ZipFile(tmp_path / "evil.zip", "a") as archive:
        archive.writestr(info, "/etc/passwd")
    hub.put("book.zip", (tmp_path / "evil.zip").read_bytes())
    root = tmp_path / "deep" / "data" / "lasot"
    if code is None:
        assert len(_download(hub, tmp_path / "deep" / "data")["book"]) == 3
    else:
        assert refused(_download, hub, tmp_path / "deep" / "data")[0].code == code
        assert not (root / "book" / "book-1").exists()
    assert not list(tmp_path.rglob("evil.txt")) and not any(path.is_symlink() for path in root.rglob("*"))


def test_a_damaged_zip_or_one_without_the_sequences_leaves_nothing(hub: LasotHub, tmp_path: Path) -> None:
    error = refused(_download, hub, tmp_path / "a", sequences=("book-4", "book-1"))[0]
    assert error.code == "zip.no_sequence" and "book-4" in str(error)
    hub.put("book.zip", b"PK but no zip" * 100)  # other damage: tests/fuzz
    assert refused(_download, hub, tmp_path / "a")[0].code == "zip.damaged"
    assert not [path.name for path in (tmp_path / "a" / "lasot").iterdir() if path.is_dir()]


def test_an_incomplete_sequence_is_kept_out_and_the_others_are_unpacked(
    hub: LasotHub, members: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = zip_of(members, tmp_path / "x.zip")
    del members["book-2/img/00000022.jpg"], members["book-3/img/00000007.jpg"]
    hub.put("book.zip", zip_of(members, tmp_path / "x.zip"))
    error = refused(_download, hub, tmp_path / "data")[0]
    assert error.code == "data.frame_count" and "book-2" in str(error)
    root = tmp_path / "data" / "lasot"
    assert sorted(path.name for path in (root / "book").iterdir()) == ["book-1", "book-3"]
    assert not list(root.glob(".unpack*"))
    hub.put("book.zip", good)
    assert _download(hub, tmp_path / "data") == {"book": ["book-2"]}
    assert (1, [7]) in [record.args[1:] for record in caplog.records if record.args]  # type: ignore[index]


def test_the_command_downloads_and_so_do_prepare_and_train(
    hub: LasotHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"HF_ENDPOINT": hub.endpoint, "DATA_DIR": str(tmp_path / "d"), "OUTPUT_DIR": str(tmp_path / "output")}
    for name, value in {**environment, "DATASET": "lasot", "CLASSES": "", "CONFIG": "demo"}.items():
        monkeypatch.setenv(name, value)
    assert main(["data", "download", "--classes", "book", "--split", "train"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["book:", "2"]
    assert main(["data", "download", "--classes", "boook"]) == main(["data", "download"]) == 2
    errors = capsys.readouterr().err
    assert "error [data.unknown_class]" in errors and "error [data.no_classes]" in errors
    monkeypatch.setenv("CLASSES", "book,coin")
    assert main(["data", "prepare"]) == 0 and (tmp_path / "d/lasot/coin/coin-1").is_dir()
    shutil.rmtree(tmp_path / "d/lasot/coin")
    monkeypatch.setenv("RESUME_EPOCH", "9")
    assert main(["train"]) == 2 and "error [resume." in capsys.readouterr().err, "refused after the download"
    assert (tmp_path / "d/lasot/coin/coin-1/groundtruth.txt").is_file()
