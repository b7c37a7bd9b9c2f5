"""`seqtrack course`: every assignment from one file to the zip, continued where it stopped."""

import csv
import json
import os
import zipfile
from pathlib import Path

import pytest
import yaml
from runs import TINY, command, environment, start

from seqtrack.cli import main
from seqtrack.commands import course
from seqtrack.commands.course import EXAMPLE, Step, assignment_steps, execute_step, read_course
from seqtrack.commands.parsers import command_parsers
from seqtrack.config.environment import configure
from seqtrack.data.demo import Plan, demo_set
from seqtrack.errors import UserError

TEAM = {"title": "Trial", "members": ["Ada"], "reflections": {"Ada": "Learned."}}


class Executed:
    """Runs steps in forked processes, and remembers them; the step at `fails` ends with a code instead."""

    def __init__(self, data: Path, fails: dict[str, int]) -> None:
        self.data, self.fails, self.done = data, fails, list[str]()

    def __call__(self, step: Step, seconds: float | None) -> int:
        if step.what in self.fails:
            return self.fails[step.what]
        # `run` without a target becomes `train`, in an interpreter of its own, which takes seconds to start.
        words = ["train" if word == "run" else word for word in step.words]
        given = {**environment(Path("unused"), self.data), **step.variables}
        with start(given, *words) as running:
            ended = running.end()
        assert ended.code == 0, ended.said
        self.done.append(step.what)
        return ended.code


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a few short drawn videos in LaSOT's layout."""
    folder = tmp_path_factory.mktemp("data")
    plan = Plan(train_sequences=2, train_frames=25, test_sequences=1, test_frames=14)
    demo_set(plan).draw_into(folder / "lasot")
    return folder


def _course(folder: Path, **values: object) -> Path:
    content = {"team": TEAM, "dataset": "lasot", "classes": ["disk", "tile"], "config": "demo", "resume_epoch": 1}
    content |= {"settings": {**TINY, "TRAIN.EPOCH": 3}, **values}
    (folder / "course.yaml").write_text(yaml.safe_dump(content))
    return folder / "course.yaml"


def _run(assignment: str, file: Path, output: Path, executed: Executed, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("OUTPUT_DIR", str(output))
    monkeypatch.setenv("DATA_DIR", str(executed.data))
    output.mkdir(exist_ok=True)
    return course.run(command_parsers()[0].parse_args(["course", assignment, str(file)]), executed)


def test_assignment_4_continues_what_assignment_3_began(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output = _course(tmp_path), tmp_path / "output"
    executed = Executed(few, {"evaluate phase 2": 75})
    assert _run("a4", file, output, executed, monkeypatch) == 75
    assert executed.done == ["train phase 1", "train phase 2 from epoch 1", "compare the phases", "evaluate phase 1"]
    marks = {path: path.stat().st_mtime_ns for path in output.rglob("*.txt")}
    executed.fails.clear()
    assert _run("a4", file, output, executed, monkeypatch) == 0
    assert {path: path.stat().st_mtime_ns for path in marks} == marks, "no box is tracked again"
    with zipfile.ZipFile(output / "hand-in.zip") as made:
        report = made.read("report.md").decode()
        one, two = (json.loads(made.read(f"phase_{n}/evaluation/evaluation.json")) for n in (1, 2))
        assert {"report.docx", "team.json", "comparison/certificate.json"} <= set(made.namelist())
    both = report.partition("### Both phases")[2].partition("\n## ")[0]
    assert both.count("| yes |") == 2, "epochs 2 and 3 of both phases"
    ours, theirs = one["trackers"][1]["sequences"], two["trackers"][0]["sequences"]
    assert len(ours) == 2 and [each["auc"] for each in ours.values()] == [each["auc"] for each in theirs.values()]
    assert "# Trial" in report and "Learned." in report


def test_a_course_stops_before_its_time_is_over(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = {"OUTPUT_DIR": str(tmp_path / "watched"), "UPLOAD_TARGET": f"folder:{tmp_path / 'target'}"}
    assert execute_step(Step("watch", ["upload"], endless), 0.5) == 75
    monkeypatch.setenv("STOP_AFTER_S", "0.9")
    executed = Executed(few, {})
    assert _run("a4", _course(tmp_path), tmp_path / "output", executed, monkeypatch) == 75 and executed.done == []


@pytest.mark.parametrize(
    ("assignment", "values", "codes"),
    [
        ("a5", {"groups": {"one": ["disk"], "two": ["tyle"], "three": ["disc"]}}, ["data.unknown_class"] * 2),
        ("a3", {"resume_epoch": 3}, ["config.resume_epoch"]),
        ("a5", {"groups": {"one": ["disk"]}, "settings": {"TRAIN.EPOHC": 1}}, ["config.unknown_key"]),
    ],
)
def test_what_a_later_step_would_refuse_is_refused_before_the_first(
    assignment: str, values: dict[str, object], codes: list[str], few: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    executed = Executed(few, {})
    with pytest.raises(UserError) as refused:
        _run(assignment, _course(tmp_path, **values), tmp_path / "output", executed, monkeypatch)
    assert [one.code for one in refused.value.problems] == codes and executed.done == []


def test_a_course_without_a_team_has_reports_without_one(tmp_path: Path) -> None:
    (tmp_path / "course.yaml").write_text("dataset: demo\n")
    without = assignment_steps("a3", read_course(tmp_path / "course.yaml"), tmp_path, tmp_path / "course.yaml")
    (tmp_path / "course.yaml").write_text("team: {title: x}\ndataset: demo\n")
    named = assignment_steps("a3", read_course(tmp_path / "course.yaml"), tmp_path, tmp_path / "course.yaml")
    assert ["--team" in step.words for steps in (without, named) for step in steps if "report" in step.words] == [
        False,
        True,
    ]


@pytest.mark.long
def test_assignment_5_trains_a_model_per_group_and_compares_them(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _course(tmp_path, groups={"Member_1": ["disk"], "two": ["tile"]})
    output = tmp_path / "output"
    assert _run("a5", file, output, Executed(few, {}), monkeypatch) == 0
    rows = list(csv.DictReader((output / "compare" / "compare.csv").open()))
    assert [(row["run"], row["epoch"]) for row in rows] == [(n, e) for n in ("Member_1", "two") for e in "123"]
    with zipfile.ZipFile(output / "hand-in.zip") as made:
        names = made.namelist()
    assert {
        "compare/compare.png",
        "compare/compare.docx",
        "two/report.docx",
        "Member_1/phase_1/evaluation/evaluation.csv",
    } <= {*names}


@pytest.mark.long
@pytest.mark.parametrize("assignment", ["a3", "a4", "a5"])
def test_a_whole_assignment_on_the_demo_data_by_one_command(assignment: str, tmp_path: Path) -> None:
    target = f"folder:{tmp_path / 'target'}"
    content = {"team": TEAM, "dataset": "demo", "groups": {"disks": ["disk"], "tiles": ["tile"]}, "target": target}
    (tmp_path / "course.yaml").write_text(yaml.safe_dump(content))
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    env = {**kept, "OUTPUT_DIR": str(tmp_path / "output"), "DATA_DIR": str(tmp_path / "data"), "DEVICE": "cpu"}
    (tmp_path / "output").mkdir()
    ended = command("course", assignment, str(tmp_path / "course.yaml"), env=env, timeout=3000)
    assert ended.code == 0, ended.said
    assert zipfile.ZipFile(tmp_path / "output" / "hand-in.zip").testzip() is None


def test_the_example_is_a_course_and_every_step_a_command_with_valid_variables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["course", "a5", "--example"]) == 0
    (tmp_path / "course.yaml").write_text(capsys.readouterr().out)
    assert (tmp_path / "course.yaml").read_text() == EXAMPLE
    example = read_course(tmp_path / "course.yaml")
    owned = example.model_copy(update={"repo": "datasets/me/runs"})
    parser = command_parsers()[0]
    for one in (example, owned):
        for assignment in ("a3", "a4", "a5"):
            steps = assignment_steps(assignment, one, tmp_path, tmp_path / "course.yaml")
            for step in steps:
                parser.parse_args(step.words)
                if step.variables:
                    is_latest = step.variables["RESUME_EPOCH"] == "latest"
                    assert is_latest == (one is owned and step.variables["PHASE"] == "1")
                    configure(step.variables)
            assert ("upload" in [step.words[0] for step in steps]) == (one is owned)
    first = assignment_steps("a5", owned, tmp_path, tmp_path / "course.yaml")[0].variables
    given, config = configure(first)
    assert (given.hf_repo, given.hf_prefix, given.output_dir.name) == ("datasets/me/runs", "group_1", "group_1")
    assert (config.DATA.CLASSES[0], config.TRAIN.EPOCH, config.TRAIN.CHECKPOINT_EPOCHS) == ("electricfan", 100, 5)
    alone = assignment_steps("a5", example, tmp_path, tmp_path / "course.yaml")[0].variables
    assert (config.TRAIN.KEEP_CHECKPOINTS, configure(alone)[1].TRAIN.KEEP_CHECKPOINTS) == (2, 0), "the only copies stay"


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        (None, "course.no_file", "course.yaml"),
        ("clases: [a]\n", "course.yaml", "clases"),
        ("team: [1\n", "course.yaml", "course.yaml"),
        ("dataset: lasot\n", "course.no_classes", "course.yaml"),
        ("team: {titel: x}\nclasses: [a]\n", "course.yaml", "titel"),
        ("dataset: lasot\ndataset: lasot\n", "course.yaml", "'dataset'"),
        ("settings: {TRAIN.EPOCH: 1, TRAIN.EPOCH: 2}\n", "course.yaml", "'TRAIN.EPOCH'"),
        ("groups: {../evil: [book]}\n", "course.group", "evil"),
        ("groups: {'': [book]}\n", "course.group", "''"),
        ("groups: {compare: [book]}\n", "course.group", "compare"),
        ("groups: {g: []}\n", "course.no_classes", "'g'"),
    ],
)
def test_a_mistake_in_the_file_is_one_error(
    text: str | None, code: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "course.yaml").write_text(text)
    assert main(["course", "a5" if text and "groups" in text else "a3", str(tmp_path / "course.yaml")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error [")]
    assert line.startswith(f"error [{code}]") and place in line
