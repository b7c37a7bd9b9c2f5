"""`data download` with the Hub's real client against a server on loopback: resumed, verified, kept in its folder."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from data.hub import Hub as Served
from data.hub import HubServer, zip_of
from data.makers import tree, write_sequence
from seqtrack.data.download import Hub, download_classes
from seqtrack.data.lasot import open_lasot
from seqtrack.errors import UserError

NUMBERS = (1, 2, 3)  # of book, 3 is a test sequence


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _members(tmp_path: Path, class_name: str, prefix: str = "") -> dict[str, bytes]:
    folder = tmp_path / "made" / class_name
    if not folder.exists():
        for number in NUMBERS:
            write_sequence(folder / f"{class_name}-{number}", 22)
    return {prefix + name: data for name, data in tree(folder).items()}


@pytest.fixture
def served(tmp_path: Path) -> Served:
    files = {
        "book.zip": zip_of(_members(tmp_path, "book"), tmp_path / "book.zip"),
        "coin.zip": zip_of(_members(tmp_path, "coin", "coin/"), tmp_path / "coin.zip"),
        "training_set.txt": b"book-1\n",
    }
    return Served(files)


def _download(served: Served, data_dir: Path, *classes: str, **options: object) -> dict[str, list[str]]:
    with HubServer(served) as endpoint:
        return download_classes(data_dir, classes, hub=Hub(endpoint=endpoint), **options)  # type: ignore[arg-type]


def _no_remains(root: Path) -> bool:
    return {path.name for path in root.iterdir() if path.name.startswith(".")} <= {".download.lock"}


def test_flat_and_nested_zips_are_unpacked_and_open(served: Served, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    added = _download(served, data_dir, "book", "coin")
    assert added == {"book": ["book-1", "book-2", "book-3"], "coin": ["coin-1", "coin-2", "coin-3"]}
    for name in ("book", "coin"):
        assert tree(data_dir / "lasot" / name) == tree(tmp_path / "made" / name)
    assert _no_remains(data_dir / "lasot") and not list((data_dir / "lasot").glob("*.zip"))
    assert len(open_lasot(data_dir, classes=("book",), split="train")) == 2


def test_what_is_there_is_not_fetched_again(served: Served, tmp_path: Path) -> None:
    _download(served, tmp_path / "data", "book", sequences=("book-1", "book-2", "book-3"))
    served.requests.clear()
    again = _download(served, tmp_path / "data", "book", sequences=("book-1", "book-2", "book-3"))
    assert again == {"book": []} and served.requests == []


def test_only_the_split_or_the_sequences_asked_for_are_kept(served: Served, tmp_path: Path) -> None:
    assert _download(served, tmp_path / "a", "book", split="train") == {"book": ["book-1", "book-2"]}
    assert _download(served, tmp_path / "b", "book", split="test") == {"book": ["book-3"]}
    assert _download(served, tmp_path / "c", "book", sequences=("book-2",)) == {"book": ["book-2"]}
    assert sorted(p.name for p in (tmp_path / "c" / "lasot" / "book").iterdir()) == ["book-2"]


def test_the_zip_is_kept_when_asked_and_used_again(served: Served, tmp_path: Path) -> None:
    _download(served, tmp_path / "data", "book", sequences=("book-1",), keep_zip=True)
    assert (tmp_path / "data" / "lasot" / "book.zip").read_bytes() == served.files["book.zip"]
    served.requests.clear()
    assert _download(served, tmp_path / "data", "book", sequences=("book-2",), keep_zip=True) == {"book": ["book-2"]}
    assert not any(path.startswith("/store/") for _, path, _ in served.requests)


def test_a_connection_that_breaks_is_resumed_where_it_broke(served: Served, tmp_path: Path) -> None:
    served.cut_after = [10_000, 5_000]
    assert len(_download(served, tmp_path / "data", "book")["book"]) == 3
    ranges = [asked for _, path, asked in served.requests if path == "/store/book.zip"]
    assert ranges == ["", "bytes=10000-", "bytes=15000-"]


def test_a_server_that_ignores_ranges_is_survived(served: Served, tmp_path: Path) -> None:
    served.cut_after, served.ignore_range = [10_000], True
    assert len(_download(served, tmp_path / "data", "book")["book"]) == 3


def test_a_killed_download_continues_in_the_next_process(served: Served, tmp_path: Path) -> None:
    """The server falls silent; the process is killed; what had arrived is not asked for again."""
    members = {**_members(tmp_path, "book"), "book-1/pad.bin": os.urandom(4_000_000)}
    served.files["book.zip"] = zip_of(members, tmp_path / "padded.zip")
    served.cut_after, served.hold = [3_000_000], threading.Event()
    root = tmp_path / "d" / "lasot"

    def arrived() -> int:
        return sum(part.stat().st_size for part in root.glob(".book.zip.*.part"))

    with HubServer(served) as endpoint:
        command = [
            sys.executable,
            "-m",
            "seqtrack",
            "data",
            "download",
            "--classes",
            "book",
            "--data-dir",
            tmp_path / "d",
        ]
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "PYTHONPATH": str(Path.cwd())}
        child = subprocess.Popen(command, env=environment)
        end = time.monotonic() + 60
        while arrived() < 2_500_000:
            assert time.monotonic() < end and child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        served.hold.set()
        begun = arrived()
        assert not (root / "book").exists()
        served.requests.clear()
        assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == 0
    assert [asked for _, path, asked in served.requests if path == "/store/book.zip"] == [f"bytes={begun}-"]
    assert len(open_lasot(tmp_path / "d", classes=("book",), split="train")) == 2


def test_a_server_that_is_overloaded_for_a_moment_is_asked_again(served: Served, tmp_path: Path) -> None:
    served.store_status = [503, 429]
    assert len(_download(served, tmp_path / "data", "book")["book"]) == 3
    served.store_status = [403]
    with pytest.raises(UserError, match="the same command continues"):
        _download(served, tmp_path / "other", "book")


def test_other_bytes_than_listed_are_never_unpacked(served: Served, tmp_path: Path) -> None:
    served.wrong_bytes = True
    with pytest.raises(UserError, match="not what the Hub lists"):
        _download(served, tmp_path / "data", "book")
    assert not (tmp_path / "data" / "lasot" / "book").exists() and _no_remains(tmp_path / "data" / "lasot")


def test_an_unknown_class_is_refused_before_the_network_and_an_absent_zip_after(served: Served, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no class 'boook'; did you mean 'book'"):
        _download(served, tmp_path / "data", "boook")
    assert served.requests == []
    with pytest.raises(UserError, match=r"no kite\.zip; it has book, coin"):
        _download(served, tmp_path / "data", "kite", "book")
    with pytest.raises(UserError, match="'coin-1' is no sequence of book"):
        _download(served, tmp_path / "data", "book", sequences=("coin-1",))


@pytest.mark.parametrize("status", [401, 404, pytest.param(500, marks=pytest.mark.long)])
def test_a_hub_that_refuses_is_one_sentence(
    served: Served, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.status = status
    with pytest.raises(UserError, match="does not list") as caught:
        _download(served, tmp_path / "data", "book")
    assert len(str(caught.value)) < 500


@pytest.mark.long  # the client itself tries for 20 s
def test_no_network_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not list"):
        download_classes(tmp_path / "data", ("book",), hub=Hub(endpoint="http://127.0.0.1:9"))


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"not enough room .* free are 0\.00 GB"):
        _download(served, tmp_path / "data", "book")
    assert not any(path.startswith("/store/") for _, path, _ in served.requests)


def _special(tmp_path: Path, name: str, *, mode: int) -> bytes:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    path = tmp_path / "special.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in _members(tmp_path, "book").items():
            archive.writestr(member, data)
        archive.writestr(info, "/etc/passwd")
    return path.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt",
        "book-1/../../evil.txt",
        "/tmp/evil.txt",
        "book-1\\..\\..\\evil.txt",
        "C:/evil.txt",
        "book-1/img/a\x01b.jpg",
        "book-1/" + "x" * 300,
    ],
)
def test_a_name_that_leaves_the_folder_is_refused_and_nothing_is_unpacked(
    served: Served, tmp_path: Path, name: str
) -> None:
    served.files["book.zip"] = zip_of({**_members(tmp_path, "book"), name: b"evil"}, tmp_path / "evil.zip")
    with pytest.raises(UserError, match="nothing was unpacked"):
        _download(served, tmp_path / "deep" / "data", "book")
    assert not (tmp_path / "deep" / "data" / "lasot" / "book").exists()
    assert not list(tmp_path.rglob("evil.txt"))


def test_links_and_devices_are_refused(served: Served, tmp_path: Path) -> None:
    for mode in (stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644):
        served.files["book.zip"] = _special(tmp_path, "book-1/img/link.jpg", mode=mode)
        with pytest.raises(UserError, match="is a link or a device"):
            _download(served, tmp_path / "data", "book")


def test_a_bomb_is_refused_by_what_it_claims(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(1, 4):
            archive.writestr(f"book-1/img/{number:08d}.jpg", bytes(40_000_000))
    served.files["book.zip"] = path.read_bytes()
    with pytest.raises(UserError, match="beyond what frames can be"):
        _download(served, tmp_path / "data", "book")
    assert not (tmp_path / "data" / "lasot" / "book").exists()


def test_a_member_whose_crc_is_wrong_ends_the_unpacking_and_leaves_no_half_sequence(
    served: Served, tmp_path: Path
) -> None:
    data = bytearray(served.files["book.zip"])
    at = data.index((tmp_path / "made/book/book-2/img/00000009.jpg").read_bytes()[100:200])
    data[at] ^= 0xFF
    served.files["book.zip"] = bytes(data)
    with pytest.raises(UserError, match="damaged zip"):
        _download(served, tmp_path / "data", "book")
    assert not (tmp_path / "data" / "lasot" / "book").exists()
    assert not list((tmp_path / "data" / "lasot").glob(".unpack*"))


def test_a_zip_without_the_class_and_one_that_is_none_are_refused(served: Served, tmp_path: Path) -> None:
    served.files["book.zip"] = zip_of({"other-1/a.txt": b"x"}, tmp_path / "x.zip")
    with pytest.raises(UserError, match="holds no sequence named book"):
        _download(served, tmp_path / "a", "book")
    served.files["book.zip"] = b"PK but no zip" * 100
    with pytest.raises(UserError, match="damaged zip"):
        _download(served, tmp_path / "b", "book")


def test_a_zip_that_lacks_a_named_sequence_is_refused_and_one_of_the_split_is_a_warning(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="does not hold book-4"):
        _download(served, tmp_path / "a", "book", sequences=("book-4", "book-1"))
    assert len(_download(served, tmp_path / "b", "book")["book"]) == 3
    assert "book.zip does not hold book-10" in caplog.text


def test_a_sequence_that_is_not_whole_in_the_zip_is_kept_out_and_the_others_come(
    served: Served, tmp_path: Path
) -> None:
    members = _members(tmp_path, "book")
    del members["book-2/img/00000022.jpg"]
    served.files["book.zip"] = zip_of(members, tmp_path / "x.zip")
    with pytest.raises(UserError, match=r"book-2.*22 rows.*book-2 was not unpacked"):
        _download(served, tmp_path / "data", "book")
    root = tmp_path / "data" / "lasot"
    assert sorted(path.name for path in (root / "book").iterdir()) == ["book-1", "book-3"]
    assert not list(root.glob(".unpack*")) and (root / "book.zip").exists()


def test_a_frame_missing_in_the_zip_is_said(served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = _members(tmp_path, "book")
    del members["book-2/img/00000007.jpg"]
    served.files["book.zip"] = zip_of(members, tmp_path / "x.zip")
    assert len(_download(served, tmp_path / "data", "book")["book"]) == 3
    assert "1 frame files of book-2 are missing in the zip" in caplog.text


def test_sequences_that_are_there_are_left_as_they_are(served: Served, tmp_path: Path) -> None:
    mine = write_sequence(tmp_path / "data" / "lasot" / "book" / "book-1", 30, seed=99)
    before = tree(mine)
    assert _download(served, tmp_path / "data", "book")["book"] == ["book-2", "book-3"]
    assert tree(mine) == before


def test_the_command_downloads_and_refuses_with_its_exit_code(served: Served, tmp_path: Path) -> None:
    with HubServer(served) as endpoint:
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "PYTHONPATH": str(Path.cwd()),
            "DATA_DIR": str(tmp_path / "d"),
        }

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "seqtrack", "data", *arguments]
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

        done = run("download", "--classes", "book", "--split", "train")
        assert done.returncode == 0 and "book: 2 sequences added" in done.stdout, done.stderr
        wrong = run("download", "--classes", "boook")
        assert wrong.returncode == 2 and "did you mean 'book'" in wrong.stderr and "Traceback" not in wrong.stderr
        assert run("download").returncode == 2
        environment.update(DATASET="lasot", CLASSES="book,coin", CONFIG="demo")
        prepared = run("prepare")
        assert prepared.returncode == 0 and (tmp_path / "d/lasot/coin/coin-1").is_dir(), prepared.stderr
