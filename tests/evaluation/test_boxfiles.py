"""Box files in and out, and everything that is no box file."""

from pathlib import Path

import numpy as np
import pytest

from seqtrack.errors import UserError
from seqtrack.evaluation.boxfiles import read_box_archive, read_boxes, read_flags, write_boxes


@pytest.mark.parametrize("separator", [",", "\t", " ", ", ", ";"])
def test_numbers_may_be_separated_in_any_of_the_fields_ways(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "boxes.txt"
    path.write_text(f"1{separator}2.5{separator}-3{separator}4e1\n")
    assert read_boxes(path).tolist() == [[1, 2.5, -3, 40]]


def test_blank_lines_at_the_end_and_windows_line_ends_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "boxes.txt"
    path.write_bytes(b"1,2,3,4\r\n5,6,7,8\r\n\r\n\n")
    assert read_boxes(path).shape == (2, 4)


def test_boxes_written_and_read_again_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    boxes = np.random.default_rng(1).normal(200, 1e3, (50, 4))
    boxes[3] = [0.1, 1 / 3, 1e-17, 123456789.123456789]
    write_boxes(tmp_path / "boxes.txt", boxes)
    assert (read_boxes(tmp_path / "boxes.txt") == boxes).all()
    assert (tmp_path / "boxes.txt").read_text().count("\n") == 50


def test_every_malformed_line_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "boxes.txt"
    path.write_text("1,2,3,4\n1,2,3\nhello\n\n1,2,3,4,5\n")
    with pytest.raises(UserError) as caught:
        read_boxes(path)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [f"{path}:{n}" for n in (2, 3, 4, 5)]


def test_very_many_malformed_lines_are_told_in_few_words(tmp_path: Path) -> None:
    path = tmp_path / "boxes.txt"
    path.write_text("x\n" * 1000)
    with pytest.raises(UserError) as caught:
        read_boxes(path)
    assert len(caught.value.problems) == 6 and "995 more" in caught.value.problems[-1]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00", None])
def test_no_text_at_all_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "boxes.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"boxes\.txt"):
        read_boxes(path)


@pytest.mark.parametrize("text", ["0,1,1", "0\n1\n1\n", "0 1 1"])
def test_flags_may_stand_in_one_line_or_in_many(tmp_path: Path, text: str) -> None:
    (tmp_path / "flags.txt").write_text(text)
    assert read_flags(tmp_path / "flags.txt").tolist() == [False, True, True]


def test_flags_that_are_neither_0_nor_1_are_refused(tmp_path: Path) -> None:
    (tmp_path / "flags.txt").write_text("0,2,1")
    with pytest.raises(UserError, match="'2'"):
        read_flags(tmp_path / "flags.txt")


class TestArchives:
    def write(self, path: Path, **changes: object) -> Path:
        arrays: dict[str, object] = {
            "names": np.array(["a-1", "b-2"]),
            "offsets": np.array([0, 2, 3]),
            "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
        }
        arrays.update(changes)
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    def test_boxes_are_dealt_to_their_sequences(self, tmp_path: Path) -> None:
        found = read_box_archive(self.write(tmp_path / "results.npz"))
        assert {name: boxes.tolist() for name, boxes in found.items()} == {
            "a-1": [[0, 1, 2, 3], [4, 5, 6, 7]],
            "b-2": [[8, 9, 10, 11]],
        }

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"boxes": None}, "holds no boxes"),
            ({"boxes": np.zeros((3, 5))}, "expected names"),
            ({"offsets": np.array([0, 2])}, "expected names"),
            ({"offsets": np.array([0, 2, 9])}, "offsets must rise"),
            ({"offsets": np.array([0, 4, 3])}, "offsets must rise"),
            ({"names": np.array([{"a": 1}, None], dtype=object)}, "cannot be read"),
        ],
    )
    def test_another_form_is_refused(self, tmp_path: Path, changes: dict[str, object], said: str) -> None:
        with pytest.raises(UserError, match=said):
            read_box_archive(self.write(tmp_path / "results.npz", **changes))

    def test_what_is_no_archive_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.npz").write_text("not an archive")
        np.save(tmp_path / "b.npy", np.zeros(3))
        for name in ("a.npz", "b.npy", "missing.npz"):
            with pytest.raises(UserError, match=name):
                read_box_archive(tmp_path / name)

    def test_an_archive_that_breaks_off_is_refused_wherever_it_is_cut(self, tmp_path: Path) -> None:
        whole = self.write(tmp_path / "results.npz").read_bytes()
        for length in range(0, len(whole), 37):
            (tmp_path / "cut.npz").write_bytes(whole[:length])
            with pytest.raises(UserError, match=r"cut\.npz"):
                read_box_archive(tmp_path / "cut.npz")
