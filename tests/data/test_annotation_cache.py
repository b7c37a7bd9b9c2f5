"""The annotation cache gives what the files say, notices every change, and is never in the way."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from seqtrack.data.annotation_cache import AnnotationCache, stamp
from seqtrack.data.lasot import open_lasot
from seqtrack.data.sequence import Sequence


def _age(root: Path) -> None:
    """Make every file look ten seconds old: younger ones are never trusted."""
    then = time.time() - 10
    for folder, folders, names in os.walk(root, topdown=False):
        for name in (*names, *folders):
            os.utime(Path(folder) / name, (then, then))


def _open(root: Path) -> list[Sequence]:
    return open_lasot(root, classes=(), split="train")


def _cache(root: Path) -> Path:
    return next((root / ".seqtrack").iterdir())


def test_what_comes_from_the_cache_is_what_the_files_say(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2")
    (root / "book" / "book-2" / "out_of_view.txt").write_text(",".join("01" * 12))
    (root / "book" / "book-1" / "img" / "00000003.jpg").unlink()
    _age(root)
    first, second = _open(root), _open(root)
    cache = AnnotationCache(root)
    for sequence in first:
        folder = root / "book" / sequence.name
        now = stamp(folder)
        assert now is not None and cache.get(f"book/{sequence.name}", now) is not None, "it came from the cache"
    for one, other in zip(first, second, strict=True):
        assert one.name == other.name
        for field in ("boxes_xywh", "visible", "absent", "missing"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
        assert other.boxes_xywh.dtype == np.float64


@pytest.mark.parametrize("part", ["groundtruth.txt", "full_occlusion.txt", "out_of_view.txt", "img"])
def test_a_change_of_any_file_is_noticed(make_lasot, part: str) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2")
    _age(root)
    before = _open(root)[0]
    path = root / "book" / "book-1" / part
    if part == "img":
        (path / "00000007.jpg").unlink()
    elif part == "groundtruth.txt":
        path.write_text("7,7,7,7\n" * 24)
    else:
        path.write_text(",".join("0" * 11 + "1" + "0" * 12))
    after = _open(root)[0]
    same = [np.array_equal(getattr(before, f), getattr(after, f)) for f in ("boxes_xywh", "absent", "missing")]
    assert not all(same)


def test_a_file_that_is_too_young_is_not_trusted(make_lasot) -> None:  # type: ignore[no-untyped-def]
    """Written twice within the clock's grain, with the same size: size and time say nothing then."""
    root = make_lasot("book-1")
    _open(root)
    now = stamp(root / "book" / "book-1")
    assert now is not None and AnnotationCache(root).get("book/book-1", now) is None


def test_classes_opened_one_after_the_other_are_both_kept(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "coin-1")
    _age(root)
    open_lasot(root, classes=("book",), split="train")
    open_lasot(root, classes=("coin",), split="train")
    cache = AnnotationCache(root)
    for key in ("book/book-1", "coin/coin-1"):
        now = stamp(root / key)
        assert now is not None and cache.get(key, now) is not None


@pytest.mark.parametrize("damage", [b"", b"PK", b"\0" * 5000, None])
def test_a_damaged_cache_is_passed_over(make_lasot, damage: bytes | None, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1")
    _age(root)
    expected = _open(root)[0].boxes_xywh
    path = _cache(root)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data) if damage is None else damage)
    np.testing.assert_array_equal(_open(root)[0].boxes_xywh, expected)
    assert "is damaged" in caplog.text
    assert not list((root / ".seqtrack").glob("*.tmp"))


def test_a_read_only_folder_is_left_alone_and_cached_elsewhere(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1")
    _age(root)
    root.chmod(0o555)
    try:
        _open(root)
        assert not (root / ".seqtrack").exists()
        now = stamp(root / "book" / "book-1")
        assert now is not None and AnnotationCache(root).get("book/book-1", now) is not None
    finally:
        root.chmod(0o755)


def test_nowhere_to_write_is_no_error(make_lasot, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1")
    _age(root)
    root.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    try:
        assert len(_open(root)) == 1
    finally:
        root.chmod(0o755)


def test_other_users_of_the_same_data_can_read_the_cache(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1")
    _age(root)
    _open(root)
    assert _cache(root).stat().st_mode & 0o777 == 0o644
