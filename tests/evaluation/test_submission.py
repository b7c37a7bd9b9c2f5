"""Files for the servers: written ones have the servers' form, and every broken one is refused with a reason."""

import io
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from seqtrack.cli import main
from seqtrack.errors import UserError
from seqtrack.evaluation.submission import (
    COUNTS,
    Expected,
    box_lines,
    check_members,
    expected_sequences,
    read_zip,
    time_lines,
)

Members = dict[str, bytes]
GOT10K = [f"GOT-10k_Test_{number:06d}" for number in range(1, 181)]
TRACKINGNET = [f"-x{number:03d}_0" for number in range(511)]


def expected(key: str) -> Expected:
    names = GOT10K if key == "GOT10K_TEST" else TRACKINGNET
    return Expected(names, dict.fromkeys(names, 3), {name: [1.0, 2.0, 30.0, 40.0 + n] for n, name in enumerate(names)})


def valid(key: str, runs: int = 1) -> Members:
    members: Members = {}
    for name, first in expected(key).first.items():
        rows = np.array([first, [5.5, 6, 7, 8], [9, 10, 11, 12]])
        if key == "TRACKINGNET":
            members[f"{name}.txt"] = box_lines(rows)
            continue
        members |= {
            f"{name}/{name}_{run:03d}.txt": box_lines(rows + np.array([[0], [run], [run]]))
            for run in range(1, runs + 1)
        }
        members[f"{name}/{name}_time.txt"] = time_lines([[0.1, 0.02, 0.03]] * runs)
    return members


def test_valid_files_are_accepted() -> None:
    for key in COUNTS:
        assert not check_members(key, valid(key), expected(key))
    assert not check_members("GOT10K_TEST", valid("GOT10K_TEST", runs=3), expected("GOT10K_TEST"))
    around = {f"SeqTrack/{name}": data for name, data in valid("GOT10K_TEST").items()}
    assert not check_members("GOT10K_TEST", around, expected("GOT10K_TEST")), "in a folder of the tracker's name"
    cut = {name: re.sub(rb"\.[0-9]+", b"", data) for name, data in valid("TRACKINGNET").items()}
    assert not check_members("TRACKINGNET", cut, expected("TRACKINGNET")), "whole numbers, as the authors write them"


# A damaged text, and the code of the reason; {} is a line of it.
LINES = {
    "{}": "{} 1", "a": "x,y,w,h", "spaces": "1 2 3 4", "tabs": "1\t2\t3\t4", "semicolons": "1;2;3;4", "three": "1,2,3",
    "five": "1,2,3,4,5", "nan": "nan,nan,nan,nan", "infinite": "1,2,inf,4", "too large": "1,2,3,1e999", "empty": "",
    "blank at the end": "{} ", "comma at the end": "{},", "underscore": "1_0,2,3,4", "hexadecimal": "0x1,2,3,4",
}  # fmt: skip
SIZES = ["1,2,0,4", "1,2,3,0", "1,2,-3,4"]


def broken(key: str) -> Iterator[tuple[Members, str]]:
    """Files that break one rule, in a place that differs each time, and the code of the refusal."""
    generator, original = random.Random(0), valid(key)
    times = [name for name in original if name.endswith("_time.txt")]
    boxes = [name for name in original if name not in times]

    def changed(names: list[str], change: Callable[[list[str]], list[str]]) -> Members:
        name = generator.choice(names)
        lines = change(original[name].decode().splitlines())
        return {**original, name: "".join(f"{line}\n" for line in lines).encode()}

    def replaced(names: list[str], text: str, first: int = 0) -> Members:
        at = generator.randrange(first, 3)
        return changed(names, lambda lines: [*lines[:at], text.replace("{}", lines[at]), *lines[at + 1 :]])

    for _ in range(6):
        for text in LINES.values():
            yield replaced(boxes, text), "submission.row"
        for text in SIZES if times else ():
            yield replaced(boxes, text, first=1), "submission.size"
        yield changed(boxes, lambda lines: ["3,4,30,40", *lines[1:]]), "submission.first_box"
        yield changed(boxes, lambda lines: lines[1:]), "submission.first_box"
        yield changed(boxes, lambda lines: lines[:-1]), "submission.lines"
        yield changed(boxes, lambda lines: [*lines, lines[-1]]), "submission.lines"
        yield changed(boxes, lambda lines: ["x,y,w,h", *lines]), "submission.row"
        yield changed(boxes, lambda lines: []), "submission.row"
        name = generator.choice(boxes)
        rest = {one: data for one, data in original.items() if one != name}
        yield rest, "submission.missing"
        for data in (b"\xff\xfe1\0", b"1,2,\xff3,4\n", b"1,2,3,4\n\0"):
            yield {**original, name: data}, "submission.text"
        for other in (name.upper(), f"results/{name}", name.replace(".txt", ".csv"), f"../{name}", name + " "):
            yield {**rest, other: original[name]}, "submission.missing"
        for other in (f"__MACOSX/{name}", "readme.md", f"{name}.bak", ".DS_Store", f"all_{name}"):
            yield {**original, other: b"1,2,3,4\n"}, "submission.name"
        for text in ("0.1 0.2", "0.1,0.2", "-1", "nan", "", "fast") if times else ():
            yield replaced(times, text), "submission.times"
        if times:
            yield changed(times, lambda lines: lines[:-1]), "submission.times"
            gone = generator.choice(times)
            yield {one: data for one, data in original.items() if one != gone}, "submission.missing"
            one = generator.choice(GOT10K)
            for run in ("002", "004"):
                yield {**original, f"{one}/{one}_{run}.txt": original[f"{one}/{one}_001.txt"]}, "submission.missing"


@pytest.mark.parametrize("key", COUNTS)
def test_every_broken_file_is_refused_with_its_reason(key: str) -> None:
    wanted, count = expected(key), 0
    for members, code in broken(key):
        problems = check_members(key, members, wanted)
        assert code in {one.code for one in problems}, (code, problems)
        assert len(problems) < 25 and all(len(one) < 400 for one in problems)
        count += 1
    assert count >= 200


def test_five_hundred_broken_files_were_made() -> None:
    assert sum(1 for key in COUNTS for _ in broken(key)) + len(ZIPS) >= 500


def as_zip(members: Members, packing: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


SMALL = as_zip({"a.txt": b"1,2,3,4\n" * 40, "b.txt": b"5,6,7,8\n"})
ENCRYPTED = bytearray(SMALL)
for start in (match.start() for match in re.finditer(rb"PK\x03\x04|PK\x01\x02", SMALL)):
    ENCRYPTED[start + (6 if SMALL[start + 2] == 3 else 8)] |= 1
ZIPS = [b"", b"PK", b"x" * 99, SMALL[:50], SMALL[:-9], SMALL[9:], SMALL.replace(b"5,6,7", b"5,6,9")]
ZIPS += [SMALL.replace(b"b.txt", b"a.txt"), bytes(ENCRYPTED)]
for packing in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
    packed = as_zip({"a.txt": b"1,2,3,4\n" * 40}, packing)
    ZIPS.append(packed[:40] + b"\xa5" * 8 + packed[48:])


def test_a_last_line_without_an_end_counts_and_a_name_with_one_is_no_name() -> None:
    names = [f"{number:03d}" for number in range(3)]
    members = {f"{one}/{one}_{end}.txt": b"1,2,3,4\n1,2,3,4" for one in names for end in ("001", "time")}
    members |= {f"{one}/{one}_time.txt": b"0.1\n0.1" for one in names}
    assert check_members("GOT10K_TEST", members, Expected(names)) == []
    found = check_members("GOT10K_TEST", {**members, "000/000_001.txt\n": b""}, Expected(names))
    assert [one.code for one in found] == ["submission.name"]


def test_what_is_no_whole_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(SMALL)
    assert set(read_zip(path)) == {"a.txt", "b.txt"}
    for data in ZIPS:
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            read_zip(path)
        assert caught.value.code == "submission.zip", data
    with pytest.raises(UserError) as caught:
        read_zip(tmp_path / "missing.zip")
    assert caught.value.code == "file.unreadable"


def submit(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> int:
    monkeypatch.setenv("DATA_DIR", str(folder / "data"))
    monkeypatch.setenv("OUTPUT_DIR", str(folder / "output"))
    return main(["submit", *map(str, arguments)])


def test_real_results_become_a_file_that_the_published_rules_read(
    tmp_path: Path, test_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GOT-10k's real names, lengths and first boxes; results in the authors' layout, with tabs."""
    place = test_data / "benchmarks" / "got10k_test.npz"
    wanted = expected_sequences("GOT10K_TEST", place, tmp_path)
    results = tmp_path / "results" / "seqtrack" / "b256" / "got10k"
    results.mkdir(parents=True)
    for name in wanted.names:
        (results / f"{name}.txt").write_text("10\t20\t30\t40\n" * wanted.lengths[name])
        (results / f"{name}_time.txt").write_text("0.05\n" * wanted.lengths[name])
    zips = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for path in zips:
        arguments = ["--dataset", "got10k_test", "--expected", place]
        assert submit(monkeypatch, tmp_path, *arguments, "--results", tmp_path / "results", "-o", path) == 0
        assert submit(monkeypatch, tmp_path, *arguments, "--check", path) == 0
    assert zips[0].read_bytes() == zips[1].read_bytes()
    with zipfile.ZipFile(zips[0]) as file:
        assert len(file.namelist()) == 360
        for name in wanted.names:  # as got-10k/toolkit loads them
            boxes = np.loadtxt(file.open(f"{name}/{name}_001.txt"), delimiter=",")
            times = np.loadtxt(file.open(f"{name}/{name}_time.txt"), delimiter=",")
            assert boxes.shape == (wanted.lengths[name], 4) and times.shape == (wanted.lengths[name],)
            assert np.allclose(boxes[0], wanted.first[name], atol=1e-3) and (boxes[1:] == [10, 20, 30, 40]).all()
    capsys.readouterr()
    (results / f"{wanted.names[3]}_time.txt").write_text("0.05\n")
    (results / f"{wanted.names[5]}.txt").unlink()
    assert submit(monkeypatch, tmp_path, *arguments, "--results", tmp_path / "results", "-o", tmp_path / "c.zip") == 2
    errors = capsys.readouterr().err
    assert "error [submission.times" in errors and wanted.names[5] in errors and not (tmp_path / "c.zip").exists()


def test_trackingnets_names_become_a_flat_file(
    tmp_path: Path, test_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = test_data / "benchmarks" / "trackingnet_test_names.txt"
    (tmp_path / "T").mkdir()
    for name in names.read_text().split():
        (tmp_path / "T" / f"{name}.txt").write_text("1,2,3,4\n5,6,7,8\n")
    arguments = ["--dataset", "trackingnet", "--expected", names, "--results", tmp_path / "T"]
    assert submit(monkeypatch, tmp_path, *arguments) == 0
    with zipfile.ZipFile(tmp_path / "output" / "trackingnet.zip") as file:
        assert sorted(file.namelist()) == sorted(f"{name}.txt" for name in names.read_text().split())
        assert np.loadtxt(file.open(file.namelist()[0]), delimiter=",").tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    for wrong, code in (
        (["--dataset", "otb", "--check", "x"], "submission.option"),
        (["--dataset", "trackingnet"], "submission.option"),
        (["--dataset", "got10k_test", "--expected", names, "--check", "x"], "submission.sequences"),
        (["--dataset", "trackingnet", "--expected", names, "--check", names], "submission.zip"),
    ):
        capsys.readouterr()
        assert submit(monkeypatch, tmp_path, *wrong) == 2
        assert f"error [{code}" in capsys.readouterr().err


# The toolkits' own readers, of their published packages: GOT-10k's experiment reads a file of ours, laid out as a
# result folder, against a ground truth that is made here; TrackingNet's package lists the sequences of the test set.
GOT10K_READER = """
import json, sys
from got10k.experiments.got10k import ExperimentGOT10k
folder, names = sys.argv[1], sys.argv[2:]
experiment = ExperimentGOT10k(folder, subset="val", result_dir=f"{folder}/results", report_dir=f"{folder}/reports")
print(json.dumps(experiment.report(["ours"])["ours"]))
"""
TOOLKITS = ["got10k==0.1.3", "TrackingNet==0.0.9", "shapely", "wget", "six"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_published_toolkits_read_our_files(
    tmp_path: Path, test_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python = Path(sys.base_prefix) / "bin" / "python3"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "packages", *TOOLKITS]
    subprocess.run(install, check=True)
    place = test_data / "benchmarks" / "got10k_test.npz"
    wanted = expected_sequences("GOT10K_TEST", place, tmp_path)
    (tmp_path / "T").mkdir()
    for number, name in enumerate(wanted.names):
        rows = np.tile([5.0 + number, 20, 30, 40], (wanted.lengths[name], 1))
        np.savetxt(tmp_path / "T" / f"{name}.txt", rows, delimiter=",", fmt="%.3f")
        np.savetxt(tmp_path / "T" / f"{name}_time.txt", np.full(len(rows), 0.05))
        truth = tmp_path / "val" / name
        truth.mkdir(parents=True)
        # A box of twice the width: the overlap is a half, and the second is hidden.
        np.savetxt(truth / "groundtruth.txt", rows * [1, 1, 2, 1], delimiter=",", fmt="%.3f")
        (truth / "meta_info.ini").write_text("[METAINFO]\nresolution: (4000, 4000)\n")
        for label in ("cover", "absence", "cut_by_image"):
            np.savetxt(truth / f"{label}.label", [8, 0, *[8] * (len(rows) - 2)], fmt="%d")
        for frame in range(len(rows)):
            (truth / f"{frame + 1:08d}.jpg").touch()
    (tmp_path / "val" / "list.txt").write_text("\n".join(wanted.names) + "\n")
    arguments = ["--dataset", "got10k_test", "--expected", place, "--results", tmp_path / "T"]
    assert submit(monkeypatch, tmp_path, *arguments, "-o", tmp_path / "ours.zip") == 0
    with zipfile.ZipFile(tmp_path / "ours.zip") as file:
        file.extractall(tmp_path / "results" / "GOT-10k" / "ours")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "packages"), "MPLBACKEND": "agg"}
    words = [sys.executable, "-c", GOT10K_READER, str(tmp_path), *wanted.names]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["overall"]["ao"] == pytest.approx(0.5) and found["overall"]["speed_fps"] == pytest.approx(20)
    lengths = {name: one["length"] for name, one in found["seq_wise"].items()}
    assert lengths == {name: wanted.lengths[name] - 1 for name in wanted.names}
    listing = "import TrackingNet.utils as t; print(*(one.removeprefix('TEST/') for one in t.getListSequence('TEST')))"
    listed = subprocess.run([sys.executable, "-c", listing], env=env, capture_output=True, text=True, check=True)
    names = (test_data / "benchmarks" / "trackingnet_test_names.txt").read_text().split()
    assert sorted(listed.stdout.split()) == sorted(names)
