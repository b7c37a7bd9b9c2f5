"""`seqtrack evaluate`: folders in, tables, plots and exit codes out."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from seqtrack.checkpoints.side_files import EvaluationRecord, read_side_file
from seqtrack.cli import main
from seqtrack.commands import checkpoint_tracks as command
from seqtrack.data.annotations import read_boxes, write_boxes
from seqtrack.evaluation import plots
from seqtrack.evaluation.metrics import METRICS
from seqtrack.evaluation.several_runs import read_evaluations
from seqtrack.evaluation.tables import (
    COURSE_COLUMNS,
    best_epoch,
    compare_evaluations,
    read_tracks,
    static_epochs,
    static_sentence,
)
from seqtrack.plotting import PHASE_COLOURS
from seqtrack.tracking import load

Evaluate = Callable[..., int]


@pytest.fixture(scope="module")
def evaluate(data_dir: Path) -> Evaluate:
    def run(output: Path, *arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("DATASET", "CLASSES", "PHASE", "DEVICE"):
                patch.delenv(name, raising=False)
            patch.setenv("OUTPUT_DIR", str(output))
            patch.setenv("DATA_DIR", str(data_dir))
            return main(["evaluate", *arguments])

    return run


@pytest.fixture(scope="module")
def evaluated(three_epochs: Path, evaluate: Evaluate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with three epochs, evaluated with all defaults. Not to be changed."""
    folder = Path(shutil.copytree(three_epochs, tmp_path_factory.mktemp("evaluated") / "output"))
    assert evaluate(folder) == 0
    return folder


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def trackers(folder: Path) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in read(folder)["trackers"]}


def test_every_epoch_is_evaluated_with_its_baselines(evaluated: Path) -> None:
    folder = evaluated / "phase_1" / "evaluation"
    found = trackers(folder)
    assert list(found) == ["epoch 1", "epoch 2", "epoch 3", "untrained", "static box", "oracle crop"]
    for one in found.values():
        assert set(one["mean"]) == {*METRICS, "fps", "ms_a_frame"}
        assert set(one["classes"]) == {"disk", "tile"}
        assert len(one["sequences"]) == 4 and len(one["curves"]["success"]) == 21
    assert found["epoch 2"]["mean"]["fps"] > 0 and found["static box"]["mean"]["fps"] is None
    assert found["epoch 1"]["sequences"] != found["epoch 2"]["sequences"], "two epochs have different weights"
    manifest = json.loads((evaluated / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.json").read_text())
    assert found["epoch 1"]["source"]["sha256"] == manifest["sha256"]


def squeezed(table: str) -> str:
    """A table without the spaces that align its columns."""
    return re.sub(" +", " ", table)


def test_tables_and_plots_agree_with_the_json(evaluated: Path) -> None:
    folder = evaluated / "phase_1" / "evaluation"
    found = trackers(folder)
    with (folder / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found) * (1 + 2 + 4)
    counts = {"all": ("4", "56"), "class": ("2", "28"), "sequence": ("1", "14")}
    for row in rows:
        one = found[row["tracker"]]
        level = {"all": {"all": one["mean"]}, "class": one["classes"], "sequence": one["sequences"]}[row["level"]]
        assert (row["sequences"], row["frames"]) == counts[row["level"]]
        for column in (*METRICS, "fps"):
            value = level[row["name"]][column]
            assert row[column] == ("" if value is None else f"{value:.4f}")
    markdown = (folder / "evaluation.md").read_text()
    for one in found.values():
        assert f"| {one['name']} | {one['mean']['auc']:.3f} |" in squeezed(markdown)
    for name in (
        "epochs",
        "epochs_by_class",
        "epochs_by_sequence",
        "success",
        "precision",
        "norm_precision",
        "classes",
        "fps",
    ):
        image = cv2.imread(str(folder / "plots" / f"{name}.png"))
        assert image is not None and image.std() > 5, f"{name}.png is empty"
        assert f"plots/{name}.png" in markdown


def test_written_boxes_score_as_when_they_were_tracked(evaluated: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    folder = evaluated / "phase_1" / "evaluation"
    assert evaluate(evaluated, "--results", str(folder / "boxes"), "-o", str(tmp_path)) == 0
    for name in ("epoch_1", "epoch_2", "untrained"):
        before, after = trackers(folder)[name.replace("_", " ")], trackers(tmp_path)[name]
        assert {key: before["mean"][key] for key in METRICS} == {key: after["mean"][key] for key in METRICS}
    boxes = read_boxes(folder / "boxes" / "epoch_2" / "disk-3.txt")
    assert boxes.shape == (14, 4) and (boxes != np.trunc(boxes)).any(), "boxes are floats, not integers"


def test_checkpoints_and_conditions_may_be_chosen(evaluated: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    file = evaluated / "phase_1" / "checkpoints" / "SEQTRACK_ep0002.safetensors"
    boxes = evaluated / "phase_1" / "evaluation" / "boxes" / "epoch_1"
    for arguments, names in (
        (["--checkpoint", str(file), "--untrained", "--results", str(boxes)], ["epoch 2", "untrained", "epoch_1"]),
        (["--checkpoint", "last", "--checkpoint", "1-2"], ["epoch 1", "epoch 2", "epoch 3"]),
        (["--checkpoint", "1", "--precision", "bf16", "--concurrent", "2", "--classes", "tile"], ["epoch 1"]),
    ):
        assert evaluate(evaluated, *arguments, "--sequences", "tile-4", "-o", str(tmp_path)) == 0
        assert list(trackers(tmp_path)) == [*names, "static box", "oracle crop"]
    record = read(tmp_path)
    assert [one["name"] for one in record["sequences"]] == ["tile-4"]
    expected = {
        "dataset": "LASOT", "split": "test", "precision": "bf16", "concurrent": 2, "run": "phase_1", "synthetic": False,
    }  # fmt: skip
    assert record["conditions"].items() >= expected.items()


def test_it_continues_where_it_stopped_and_repeats_nothing(
    evaluated: Path, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(shutil.copytree(evaluated, tmp_path / "output"))
    folder = output / "phase_1" / "evaluation"
    before, tracked = trackers(folder), list[int]()
    track = command.track_sequences

    def counted(*arguments: Any, **options: Any) -> Any:
        tracked.append(1)
        return track(*arguments, **options)

    monkeypatch.setattr(command, "track_sequences", counted)
    (folder / "evaluation.json").unlink()
    assert (evaluate(output), len(tracked)) == (0, 0)
    assert trackers(folder) == before, "every number, speeds included, is that of the first time"
    (folder / "boxes" / "epoch_2" / "tile-3_time.txt").unlink()  # as a kill between two files leaves it
    (folder / "boxes" / "epoch_3" / "made_from.json").unlink()
    assert (evaluate(output), len(tracked)) == (0, 2)
    times = [float(line) for line in (folder / "boxes" / "epoch_1" / "disk-3_time.txt").read_text().split()]
    after = trackers(folder)["epoch 1"]["sequences"]["disk-3"]
    assert len(times) == 14 and after["fps"] == pytest.approx(13 / sum(times[1:]))
    assert len((folder / "inference.log").read_text().splitlines()) == 4 * (4 + 2)
    made_from = json.loads((folder / "boxes" / "epoch_1" / "made_from.json").read_text())
    assert read_tracks("epoch 1", folder / "boxes", ["disk-3"], made_from) is not None
    assert read_tracks("epoch 1", folder / "boxes", ["disk-3"], {**made_from, "precision": "bf16"}) is None


def test_checkpoints_come_from_the_target_one_at_a_time(
    evaluated: Path, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target" / "phase_1"
    shutil.copytree(evaluated / "phase_1" / "checkpoints", target / "checkpoints")
    (target / "run.json").write_text("{}")
    shutil.copy(evaluated / "phase_1" / "config.yaml", target)
    monkeypatch.setenv("UPLOAD_TARGET", f"folder:{target.parent}")
    most, load_model = [0], load.load_model

    def watched(*arguments: Any) -> Any:
        most.append(len(list((tmp_path / "output").rglob("*.safetensors"))))
        return load_model(*arguments)

    monkeypatch.setattr(load, "load_model", watched)
    assert evaluate(tmp_path / "output", "--hub", "--checkpoint", "2-3", "--sequences", "tile-4") == 0
    found, expected = (trackers(one / "phase_1" / "evaluation") for one in (tmp_path / "output", evaluated))
    for name in ("epoch 2", "epoch 3"):
        one, other = (trackers_of[name]["sequences"]["tile-4"] for trackers_of in (found, expected))
        assert {key: one[key] for key in METRICS} == pytest.approx({key: other[key] for key in METRICS})
    assert (max(most), list((tmp_path / "output").rglob("*.safetensors"))) == (1, [])
    assert evaluate(tmp_path / "output", "--hub", "--checkpoint", "7") == 2


def without_clock(value: Any) -> Any:
    if isinstance(value, list):
        return [*map(without_clock, value)]
    if not isinstance(value, dict):
        return value
    return {k: without_clock(one) for k, one in value.items() if k not in ("fps", "ms_a_frame", "seconds")}


def test_two_processes_write_the_files_of_one(
    evaluated: Path, evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checkpoints of the target, which each process fetches for itself."""
    (tmp_path / "target").mkdir()
    shutil.copytree(evaluated / "phase_1", tmp_path / "target" / "phase_1")
    (tmp_path / "target" / "phase_1" / "run.json").write_text("{}")
    monkeypatch.setenv("UPLOAD_TARGET", f"folder:{tmp_path / 'target'}")
    monkeypatch.setenv("NPROC", "auto" if torch.cuda.is_available() else "2")
    monkeypatch.setattr(command, "track_sequences", None)  # this process only distributes the work
    assert evaluate(tmp_path / "output", "--hub") == 0
    assert not list((tmp_path / "output").rglob("*.safetensors"))
    ours, theirs = (one / "phase_1" / "evaluation" for one in (tmp_path / "output", evaluated))
    files = [sorted(path.relative_to(one) for path in one.rglob("*.*")) for one in (ours, theirs)]
    assert files[0] == files[1]
    for path in files[0]:
        if path.parts[0] == "boxes" and not path.name.endswith("_time.txt"):
            assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path
    assert without_clock(read(ours)) == without_clock(read(theirs))
    assert len((ours / "inference.log").read_text().splitlines()) == 4 * 4


def test_runs_are_compared_in_one_table_and_one_plot(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("left", "right"):
        shutil.copytree(evaluated / "phase_1" / "evaluation", tmp_path / name / "phase_1" / "evaluation")
    file = tmp_path / "right" / "phase_1" / "evaluation" / "evaluation.json"
    record = json.loads(file.read_text())
    record["trackers"][1]["mean"]["auc"] = 99.5
    file.write_text(json.dumps(record))
    runs = [str(tmp_path / name) for name in ("left", "right")]
    assert main(["compare", *runs, "-o", str(tmp_path / "out")]) == 0
    assert "| right | best, epoch 2 |" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    assert [(one["run"], one["epoch"]) for one in rows] == [(run, e) for run in ("left", "right") for e in "123"]
    mean = trackers(evaluated / "phase_1" / "evaluation")["epoch 3"]["mean"]
    assert rows[2] == {"run": "left", "epoch": "3", **{key: f"{mean[key]:.4f}" for key in COURSE_COLUMNS}}
    assert rows[4]["auc"] == "99.5000"
    assert cv2.imread(str(tmp_path / "out" / "compare.png")).std() > 5
    same = [shutil.copytree(run, tmp_path / name / "output") for run, name in zip(runs, ("ann", "bob"), strict=True)]
    assert {*read_evaluations([Path(run) for run in same])} == {"ann/output/phase_1", "bob/output/phase_1"}
    damaged = Path(shutil.copytree(runs[0], tmp_path / "damaged"))
    for number, damage in enumerate((lambda one: one["mean"].pop("auc"), lambda one: one["curves"].pop("success"))):
        copied = json.loads(file.read_text())
        damage(copied["trackers"][number])
        (damaged / "phase_1" / "evaluation" / "evaluation.json").write_text(json.dumps(copied))
        assert main(["compare", str(damaged), "-o", str(tmp_path / "none")]) == 2
        assert "[side_file.invalid]" in capsys.readouterr().err
    for words, code in (([*runs, runs[0]], "compare.twice"), ([str(tmp_path)], "compare.not_evaluated")):
        assert main(["compare", *words, "-o", str(tmp_path / "none")]) == 2
        assert f"[{code}]" in capsys.readouterr().err


def test_an_epoch_that_scores_like_a_box_that_never_moves_is_named(evaluated: Path) -> None:
    record = read_side_file(evaluated / "phase_1" / "evaluation" / "evaluation.json", EvaluationRecord)
    assert record is not None and static_epochs(record) == []
    static = next(one for one in record.trackers if one.kind == "static_box")
    record.trackers[1] = record.trackers[1].model_copy(
        update={"mean": {**static.mean, "auc": (static.mean["auc"] or 0) + 0.01}}
    )
    assert static_epochs(record) == ["epoch 2"] and "epoch 2" in static_sentence(record)
    assert [one[2] for one in compare_evaluations([record, record])] == [True, True, True]
    other = record.model_copy(deep=True)
    other.trackers[0].sequences["tile-3"]["p20"] = 0.123
    assert [one[2] for one in compare_evaluations([record, other])] == [False, True, True]


def test_an_exported_model_scores_as_its_checkpoint(three_epochs: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    file, model = three_epochs / "phase_1" / "checkpoints" / "SEQTRACK_ep0002.safetensors", str(tmp_path / "model")
    assert main(["export", str(file), "--onnx", "-o", model]) == 0
    few = ["--onnx", model, "--sequences", "tile-4", "-o", str(tmp_path / "both")]
    assert evaluate(three_epochs, *few, "--checkpoint", "2") == 0
    found = trackers(tmp_path / "both")
    assert list(found) == ["epoch 2", "ONNX, epoch 2", "static box", "oracle crop"]
    for metric in METRICS:
        assert found["ONNX, epoch 2"]["mean"][metric] == pytest.approx(found["epoch 2"]["mean"][metric], abs=1e-6)
    assert found["ONNX, epoch 2"]["source"]["sha256"] == found["epoch 2"]["source"]["sha256"]
    assert read(tmp_path / "both")["conditions"]["runtime"].startswith("onnxruntime ")
    assert evaluate(three_epochs, "--runtime", "openvino") == 2
    assert evaluate(tmp_path / "no run", *few) == 0
    assert list(trackers(tmp_path / "both")) == ["ONNX, epoch 2", "static box", "oracle crop"]
    assert evaluate(tmp_path / "no run", *few, "--precision", "bf16") == 2
    assert evaluate(tmp_path / "no run", *few, "--results", ".", "--annotations", ".") == 2


@pytest.fixture
def refused(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(output: Path, *arguments: str) -> str:
        assert evaluate(output, *arguments) == 2
        return capsys.readouterr().err

    return run


OPTIONS = [
    *(("checkpoint.no_epoch", f"--checkpoint={word}") for word in ("7", "2-4", "1-9999999999", "5-4")),
    *(("checkpoint.option", f"--checkpoint={word}") for word in ("9" * 5000, "best", "-1")),
    ("checkpoint.missing", "--checkpoint=some/file.safetensors"), ("data.unknown_class", "--classes=unicorn"),
    ("data.unknown_data_set", "--dataset=nosuchset"), ("annotations.sequence", "--sequences=horse-99"),
    ("evaluation.option", "--annotations=. --checkpoint=1"),
]  # fmt: skip


def test_options_that_cannot_be_satisfied(three_epochs: Path, refused: Callable[..., str]) -> None:
    for code, arguments in OPTIONS:
        assert f"error [{code}" in refused(three_epochs, *arguments.split()), arguments


def test_runs_that_cannot_be_evaluated(tmp_path: Path, three_epochs: Path, refused: Callable[..., str]) -> None:
    """Without checkpoints, trained on test sequences according to its own records, with a damaged checkpoint."""
    assert "error [checkpoint.none]" in refused(tmp_path / "empty")
    output = Path(shutil.copytree(three_epochs, tmp_path / "output"))
    source: dict[str, Any] = {
        "name": "LASOT", "split": "train", "synthetic": False, "sequences": 2, "frames": 50, "classes": {},
        "frame_bytes": 1, "names": ["disk-1", "tile-3"], "digest": "0" * 64,
    }  # fmt: skip
    recorded = {"format": 2, "frames_covered_by": "size", "sources": [source], "digest": "0" * 64}
    (output / "phase_1" / "dataset.json").write_text(json.dumps(recorded))
    errors = refused(output)
    assert "error [evaluation.leak]" in errors and "tile-3" in errors
    (output / "phase_1" / "dataset.json").unlink()
    file = output / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert file.name in refused(output)
    assert not (output / "phase_1" / "evaluation").exists()


def test_a_place_that_cannot_be_written_and_malformed_result_files_are_refused(
    evaluated: Path, refused: Callable[..., str], evaluate: Evaluate, tmp_path: Path
) -> None:
    boxes = Path(shutil.copytree(evaluated / "phase_1" / "evaluation" / "boxes" / "epoch_1", tmp_path / "T"))
    (tmp_path / "file").write_text("")
    arguments = ["--results", str(boxes), "-o"]
    assert "error [evaluation.output]" in refused(evaluated, *arguments, str(tmp_path / "file" / "evaluation"))
    rows = read_boxes(boxes / "disk-3.txt")
    write_boxes(boxes / "disk-4.txt", np.vstack([rows[:5], [[np.nan] * 4], rows[6:]]))
    repaired = [*arguments, str(tmp_path / "r"), "--repair", "official"]
    assert evaluate(evaluated, *repaired) == 0 and "disk-4" in trackers(tmp_path / "r")["T"]["notes"][0]
    write_boxes(boxes / "disk-3.txt", rows[:-1])
    (boxes / "tile-4.txt").write_text("1,2,3,4\n10_00,2,3,4\n")
    errors = refused(evaluated, *arguments, str(tmp_path / "e"))
    assert all(place in errors for place in ("disk-3.txt: 13 ", "disk-4.txt:6", "tile-4.txt, line 2"))


COUNTS = {"IV": 47, "POC": 187, "DEF": 142, "MB": 89, "CM": 86, "ROT": 175, "BC": 100, "VC": 33, "SV": 273, "FOC": 118,
          "FM": 53, "OV": 104, "LR": 141, "ARC": 249}  # fmt: skip
ATTRIBUTES = {
    "siamrpnpp": "52.812 46.496 52.883 44.754 52.138 48.254 44.890 45.436 49.401 37.410 31.940 40.599 38.673 47.055",
    "atom": "54.854 47.448 51.204 49.404 55.299 48.329 45.395 45.487 51.196 42.746 41.417 44.576 45.026 49.701",
}
TOOLKIT = {
    "siamrpnpp": {"auc": 49.5591, "op50": 58.5536, "p20": 49.1437, "p_norm": 56.9406},
    "atom": {"auc": 51.4338, "op50": 59.1744, "p20": 50.5433, "p_norm": 57.6806},
}


def test_published_trackers_have_the_toolkits_numbers_to_the_last_digit(
    lasot_eval: Path, evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the whole test set, by attribute too; the Python evaluators' convention gives its known difference."""
    arguments = ["--annotations", str(lasot_eval / "lasot_test_gt.npz"), "--results"]
    flags = str(lasot_eval.parent / "benchmarks" / "lasot_attributes.npz")
    assert evaluate(tmp_path, *arguments, str(lasot_eval), "--attributes", flags, "--plot-format", "svg") == 0
    assert "| siamrpnpp | 49.559 | 58.554 |" in squeezed(capsys.readouterr().out)
    found = trackers(tmp_path / "evaluation")
    for name, numbers in TOOLKIT.items():
        assert {metric: round(found[name]["mean"][metric], 4) for metric in numbers} == numbers
    assert len(found["atom"]["sequences"]) == 280 and len(found["atom"]["classes"]) == 70
    assert sum(one["frames"] for one in read(tmp_path / "evaluation")["sequences"]) == 685_360
    assert read(tmp_path / "evaluation")["attributes"] == COUNTS
    for name, numbers in ATTRIBUTES.items():
        assert " ".join(f"{one['auc']:.3f}" for one in found[name]["attributes"].values()) == numbers
    assert (tmp_path / "evaluation" / "plots" / "attributes.svg").read_text().startswith("<?xml")
    (note,) = found["atom"]["notes"]
    assert "horse-15" in note and "18 rows" in note and not found["siamrpnpp"]["notes"]
    one = str(lasot_eval / "results_siamrpnpp.npz")
    assert evaluate(tmp_path, *arguments, one, "--convention", "pytracking", "-o", str(tmp_path / "python")) == 0
    mean = trackers(tmp_path / "python")["siamrpnpp"]["mean"]
    expected = TOOLKIT["siamrpnpp"] | {"p20": round(49.1437 - 0.0005, 4)}
    assert {metric: round(mean[metric], 4) for metric in expected} == expected
    assert read(tmp_path / "python")["conditions"]["convention"] == "pytracking"


@pytest.mark.usefixtures("real_plots")
def test_no_text_of_a_plot_is_cut_and_a_run_has_the_colour_of_its_phase(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_side_file(evaluated / "phase_1" / "evaluation" / "evaluation.json", EvaluationRecord)
    assert record is not None
    long = {"device": "GPU $x_{y}$ of a very long name, " * 3, "dataset": "A data set_" * 9, "run": "phase_2"}
    drawn = list[Figure]()
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    names = plots.draw_plots(record.model_copy(update={"conditions": {**record.conditions, **long}}), tmp_path)
    assert {"epochs.png", "success.png", "classes.png", "fps.png"} <= set(names) and len(drawn) == len(names)
    for figure in drawn:
        FigureCanvasAgg(figure).draw()
        axes = figure.axes[0]
        shown = [figure._suptitle]  # type: ignore[attr-defined]
        for each in figure.axes:
            shown += [each.xaxis.label, each.yaxis.label, *each.get_yticklabels()]
        shown += [text for legend in figure.legends for text in legend.get_texts()]
        boxes = [text.get_window_extent() for text in shown if text is not None and text.get_text()]
        assert len(boxes) > 4
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)
        assert figure._suptitle.get_window_extent().y1 <= figure.bbox.y1 + 1  # type: ignore[attr-defined]
        colours = {to_hex(line.get_color()) for line in axes.lines} | {
            to_hex(bar.get_facecolor()) for bar in axes.patches
        }
        assert PHASE_COLOURS["phase_1"] not in colours
        assert (PHASE_COLOURS["phase_2"] in colours) == (len(figure.axes) == 1), "overlaid curves have other colours"
    best = max(record.trackers[:3], key=lambda one: one.mean["auc"] or 0)
    assert best_epoch(record) is best
    widths = {line.get_label(): line.get_linewidth() for line in drawn[names.index("success.png")].axes[0].lines}
    assert str(max(widths, key=lambda label: widths[label])).startswith(best.name)
    tracking = cv2.imread(str(evaluated / "phase_1" / "evaluation" / "plots" / "tracking.png"))
    assert tracking is not None and tracking.std() > 10
