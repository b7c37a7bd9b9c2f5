"""`seqtrack evaluate` from the outside: folders in, tables, plots and exit codes out."""

import csv
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from seqtrack.annotation_files import read_boxes
from seqtrack.evaluation.boxfiles import write_boxes

from seqtrack.cli import main
from seqtrack.evaluation.metrics import METRICS

from .conftest import EvaluationData

MakeRun = Callable[[int], Path]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("DATASET", "CLASSES", "PHASE", "DEVICE"):
        monkeypatch.delenv(name, raising=False)
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Callable[..., int]:
    def run(output: Path, *arguments: str) -> int:
        monkeypatch.setenv("OUTPUT_DIR", str(output))
        monkeypatch.setenv("DATA_DIR", str(data_dir))
        return main(["evaluate", *arguments])

    return run


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def trackers(folder: Path) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in read(folder)["trackers"]}


class TestCheckpoints:
    def test_every_epoch_is_evaluated_with_its_baselines(
        self, make_run: MakeRun, evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = make_run(3)
        assert evaluate(output) == 0
        folder = output / "phase_1" / "evaluation"
        found = trackers(folder)
        assert list(found) == ["epoch 1", "epoch 2", "epoch 3", "untrained", "static box"]
        for one in found.values():
            assert set(one["mean"]) == {*METRICS, "fps", "ms_a_frame"}
            assert set(one["classes"]) == {"disk", "tile"}
            assert len(one["sequences"]) == 4 and len(one["curves"]["success"]) == 21
        assert found["epoch 2"]["mean"]["fps"] > 0 and found["static box"]["mean"]["fps"] is None
        assert found["epoch 1"]["sequences"] != found["epoch 2"]["sequences"], "two epochs have different weights"
        printed = capsys.readouterr().out
        assert "| epoch 3 |" in printed and f"{found['epoch 3']['mean']['auc']:.3f}" in printed

    def test_conditions_and_digests_are_recorded(self, make_run: MakeRun, evaluate: Callable[..., int]) -> None:
        output = make_run(1)
        assert evaluate(output, "--precision", "bf16", "--concurrent", "2") == 0
        evaluation = read(output / "phase_1" / "evaluation")
        conditions = evaluation["conditions"]
        assert (conditions["dataset"], conditions["split"], conditions["precision"]) == ("LASOT", "test", "bf16")
        assert (conditions["concurrent"], conditions["run"], conditions["synthetic"]) == (2, "phase_1", False)
        manifest = json.loads((output / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.json").read_text())
        assert evaluation["trackers"][0]["source"]["sha256"] == manifest["sha256"]

    @pytest.mark.parametrize(
        ("words", "names"),
        [
            (["last"], ["epoch 3", "static box"]),
            (["2"], ["epoch 2", "static box"]),
            (["1-2"], ["epoch 1", "epoch 2", "static box"]),
            (["3", "1", "3"], ["epoch 1", "epoch 3", "static box"]),
        ],
    )
    def test_some_epochs_may_be_chosen(
        self, make_run: MakeRun, evaluate: Callable[..., int], words: list[str], names: list[str]
    ) -> None:
        output = make_run(3)
        assert evaluate(output, *(part for word in words for part in ("--checkpoint", word))) == 0
        assert list(trackers(output / "phase_1" / "evaluation")) == names

    def test_a_file_from_elsewhere_and_the_untrained_model_on_request(
        self, make_run: MakeRun, evaluate: Callable[..., int]
    ) -> None:
        output = make_run(2)
        file = output / "phase_1" / "checkpoints" / "SEQTRACK_ep0002.safetensors"
        arguments = ["--checkpoint", str(file), "--untrained", "-o", str(output / "elsewhere")]
        assert evaluate(output, *arguments) == 0
        assert list(trackers(output / "elsewhere")) == ["epoch 2", "untrained", "static box"]

    def test_classes_and_sequences_narrow_the_split(self, make_run: MakeRun, evaluate: Callable[..., int]) -> None:
        output = make_run(1)
        assert evaluate(output, "--checkpoint", "1", "--classes", "tile", "--sequences", "tile-4") == 0
        evaluation = read(output / "phase_1" / "evaluation")
        assert [one["name"] for one in evaluation["sequences"]] == ["tile-4"]

    def test_written_boxes_score_as_they_did_when_they_were_found(
        self, make_run: MakeRun, evaluate: Callable[..., int], data_dir: Path
    ) -> None:
        output = make_run(2)
        assert evaluate(output) == 0
        folder = output / "phase_1" / "evaluation"
        again = output / "again"
        assert evaluate(output, "--results", str(folder / "boxes"), "-o", str(again)) == 0
        for name in ("epoch_1", "epoch_2", "untrained"):
            before, after = trackers(folder)[name.replace("_", " ")], trackers(again)[name]
            assert {key: before["mean"][key] for key in METRICS} == {key: after["mean"][key] for key in METRICS}
        boxes = read_boxes(folder / "boxes" / "epoch_2" / "disk-3.txt")
        assert boxes.shape == (14, 4) and (boxes != np.trunc(boxes)).any(), "boxes are floats, not cut to whole pixels"

    def test_other_trackers_are_next_to_the_checkpoints(self, make_run: MakeRun, evaluate: Callable[..., int]) -> None:
        output = make_run(1)
        assert evaluate(output) == 0
        results = output / "phase_1" / "evaluation" / "boxes" / "untrained"
        assert evaluate(output, "--checkpoint", "1", "--results", str(results)) == 0
        assert list(trackers(output / "phase_1" / "evaluation")) == ["epoch 1", "untrained", "static box"]

    def test_tables_and_plots_agree_with_the_json(self, make_run: MakeRun, evaluate: Callable[..., int]) -> None:
        output = make_run(2)
        assert evaluate(output) == 0
        folder = output / "phase_1" / "evaluation"
        found = trackers(folder)
        with (folder / "evaluation.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(found) * (1 + 2 + 4)
        for row in rows:
            one = found[row["tracker"]]
            level = {"all": {"all": one["mean"]}, "class": one["classes"], "sequence": one["sequences"]}[row["level"]]
            for column in (*METRICS, "fps"):
                value = level[row["name"]][column]
                assert row[column] == ("" if value is None else f"{value:.4f}")
        markdown = (folder / "evaluation.md").read_text()
        for one in found.values():
            assert f"| {one['name']} | {one['mean']['auc']:.3f} |" in markdown
        for name in ("epochs", "epochs_by_class", "success", "precision", "norm_precision", "classes", "fps"):
            image = cv2.imread(str(folder / "plots" / f"{name}.png"))
            assert image is not None and image.std() > 5, f"{name}.png is empty"
            assert f"plots/{name}.png" in markdown


class TestRefusals:
    def refused(self, capsys: pytest.CaptureFixture[str], code: int) -> str:
        assert code == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        return told

    @pytest.mark.parametrize(
        ("word", "said"),
        [
            ("7", "no checkpoint of epoch 7; there are: 1, 2"),
            ("2-4", "no checkpoint of epoch 3"),
            ("best", "expected all, last"),
            ("-1", "expected all, last"),
            ("some/file.safetensors", "does not exist"),
        ],
    )
    def test_a_checkpoint_that_is_not_there(
        self,
        make_run: MakeRun,
        evaluate: Callable[..., int],
        capsys: pytest.CaptureFixture[str],
        word: str,
        said: str,
    ) -> None:
        assert said in self.refused(capsys, evaluate(make_run(2), f"--checkpoint={word}"))

    def test_a_run_without_checkpoints(
        self, tmp_path: Path, evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "train first" in self.refused(capsys, evaluate(tmp_path))

    def test_a_damaged_checkpoint(
        self, make_run: MakeRun, evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = make_run(1)
        file = output / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.safetensors"
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
        assert "sha256" in self.refused(capsys, evaluate(output))
        assert not (output / "phase_1" / "evaluation").exists()

    def test_a_class_or_a_data_set_that_is_not_there(
        self, make_run: MakeRun, evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = make_run(1)
        assert "unicorn" in self.refused(capsys, evaluate(output, "--classes", "unicorn"))
        assert "nosuchset" in self.refused(capsys, evaluate(output, "--dataset", "nosuchset"))
        assert "horse-99" in self.refused(capsys, evaluate(output, "--sequences", "horse-99"))

    def test_test_sequences_that_the_run_was_trained_on(
        self, make_run: MakeRun, evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = make_run(1)
        source: dict[str, Any] = {
            "name": "LASOT", "split": "train", "synthetic": False, "sequences": 2, "frames": 50, "classes": {},
            "frame_bytes": 1, "names": ["disk-1", "tile-3"], "digest": "0" * 64,
        }  # fmt: skip
        recorded = {"format": 2, "frames_covered_by": "size", "sources": [source], "digest": "0" * 64}
        (output / "phase_1" / "dataset.json").write_text(json.dumps(recorded))
        assert "tile-3" in self.refused(capsys, evaluate(output))
        source["names"] = ["disk-1", "tile-1"]
        (output / "phase_1" / "dataset.json").write_text(json.dumps(recorded))
        assert evaluate(output) == 0

    def test_result_files_that_cannot_be_scored_are_told_all_at_once(
        self, make_run: MakeRun, evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = make_run(1)
        assert evaluate(output) == 0
        boxes = output / "phase_1" / "evaluation" / "boxes" / "epoch_1"
        rows = read_boxes(boxes / "disk-3.txt")
        write_boxes(boxes / "disk-3.txt", rows[:-1])
        write_boxes(boxes / "disk-4.txt", np.vstack([rows[:5], [[np.nan] * 4], rows[6:]]))
        write_boxes(boxes / "tile-3.txt", np.vstack([rows[:5], [[1, 1, -1, 5]], rows[6:]]))
        (boxes / "tile-4.txt").write_text("1,2,3,4\nnot,a,box\n")
        told = self.refused(capsys, evaluate(output, "--results", str(boxes)))
        for place in ("disk-3.txt: 13 boxes", "disk-4.txt:6", "tile-3.txt:6", "tile-4.txt, line 2"):
            assert place in told

    def test_the_toolkits_repair_scores_what_strictness_refuses(
        self, make_run: MakeRun, evaluate: Callable[..., int]
    ) -> None:
        output = make_run(1)
        assert evaluate(output) == 0
        boxes = output / "phase_1" / "evaluation" / "boxes" / "epoch_1"
        rows = read_boxes(boxes / "disk-4.txt")
        rows[5] = np.nan
        write_boxes(boxes / "disk-4.txt", rows)
        assert evaluate(output, "--results", str(boxes)) == 2
        assert evaluate(output, "--results", str(boxes), "--repair", "official", "-o", str(output / "e")) == 0
        assert "disk-4" in trackers(output / "e")["epoch_1"]["notes"][0]

    def test_a_frame_without_an_annotated_box_counts_as_the_convention_says(
        self, make_run: MakeRun, evaluate: Callable[..., int], tmp_path: Path
    ) -> None:
        output = make_run(1)
        for place in (tmp_path / "gt" / "cup" / "cup-1", tmp_path / "boxes"):
            place.mkdir(parents=True)
        folder = tmp_path / "gt" / "cup" / "cup-1"
        (folder / "groundtruth.txt").write_text("5,5,10,10\n0,5,10,10\n")
        (folder / "full_occlusion.txt").write_text("0,0")
        (folder / "out_of_view.txt").write_text("0,0")
        (tmp_path / "boxes" / "cup-1.txt").write_text("5,5,10,10\n300,5,10,10\n")
        arguments = ["--results", str(tmp_path / "boxes"), "--annotations", str(tmp_path / "gt"), "-o"]
        for convention, p20 in (("toolkit", 100.0), ("pytracking", 50.0)):
            assert evaluate(output, *arguments, str(tmp_path / convention), "--convention", convention) == 0
            assert trackers(tmp_path / convention)["boxes"]["mean"]["p20"] == p20
            assert read(tmp_path / convention)["conditions"]["convention"] == convention
        assert evaluate(output, *arguments, str(tmp_path / "default")) == 0
        assert trackers(tmp_path / "default") == trackers(tmp_path / "toolkit")

    def test_annotations_without_frames_cannot_be_tracked(
        self, make_run: MakeRun, evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str], data_dir: Path
    ) -> None:
        arguments = ["--annotations", str(data_dir), "--checkpoint", "1"]
        assert "--results" in self.refused(capsys, evaluate(make_run(1), *arguments))

    def test_a_place_where_nothing_can_be_written(
        self, make_run: MakeRun, evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = make_run(1)
        (output / "file").write_text("")
        arguments = ["--checkpoint", "1", "-o", str(output / "file" / "evaluation")]
        assert "cannot be written" in self.refused(capsys, evaluate(output, *arguments))


def test_two_published_trackers_stand_side_by_side_on_the_whole_test_set(
    lasot_eval: EvaluationData, evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = str(lasot_eval.folder / "lasot_test_gt.npz")
    assert evaluate(tmp_path, "--results", str(lasot_eval.folder), "--annotations", annotations) == 0
    printed = capsys.readouterr().out
    for row in ("| siamrpnpp | 49.559 | 58.554 |", "| atom | 51.434 | 59.174 |"):
        assert row in printed
    found = trackers(tmp_path / "evaluation")
    assert len(found["atom"]["sequences"]) == 280 and len(found["atom"]["classes"]) == 70
    assert found["atom"]["notes"] and not found["siamrpnpp"]["notes"]
