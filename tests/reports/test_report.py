"""Every number of a report is in a file of the run, and what comes from files is never markup."""

import hashlib
import json
import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from seqtrack.cli import main
from seqtrack.config.loader import compare_configs, load_config
from seqtrack.errors import UserError
from seqtrack.reports.card import model_card
from seqtrack.reports.rendering import report_page
from seqtrack.reports.report import Team, read_team, write_report
from seqtrack.reports.requirements import REQUIREMENTS, find
from seqtrack.runtime.metrics_log import clock

CLASS = {"sequences": 1, "frames": 1, "visible": 1, "absent": 0, "missing": 0}
ROOT = Path(__file__).resolve().parents[2]
TEAM = """\
title: Assignment 3 <script>alert(1)</script>
team: The | Trackers
number: 7
course: Image processing
members:
  - name: Ada Lovelace
    id: 123450
  - Alan Turing
repository: https://example.org/a/b
notes: see [b](//evil.example/b)
"""
_NUMBER = re.compile(r"(?<![\w.:/-])\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w:]|\.\d)")


def written(output: Path, team: Team | None = None) -> str:
    return write_report(output, team or Team())[0].read_text()


def section(report: str, title: str) -> str:
    return report.split(f". {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows except headings and rulers."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rulers = {index for index, row in enumerate(cells) if set("".join(row)) <= set("-: ")}
    return [row for index, row in enumerate(cells) if index not in rulers and index + 1 not in rulers]


def metrics(output: Path, phase: str) -> list[dict[str, Any]]:
    lines = (output / phase / "logs" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["type"] == "epoch"]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if not isinstance(value, list):
        yield value
        return
    for inner in value:
        yield from _leaves(inner)


_READERS: dict[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
    ".yaml": yaml.safe_load,
    ".log": lambda _: [],
    ".csv": lambda _: [],
}


def unfounded(report: str, output: Path) -> list[str]:
    """Numbers of a report that no file of the run has, rounded to the digits shown.

    Covered by tests of their own: code (paths with lines, digests), the table of time statistics, uploads, headings.
    """
    texts = {path: path.read_text() for path in output.rglob("*") if path.suffix in _READERS and path.is_file()}
    leaves = [leaf for path, text in texts.items() for leaf in _leaves(_READERS[path.suffix](text))]
    numbers = {float(leaf) for leaf in leaves if isinstance(leaf, int | float) and not isinstance(leaf, bool)}
    words = {word for text in texts.values() for word in re.findall(r"[^\s,;:()\[\]{}\"']+", text)}
    for source in ("experiments/seqtrack_b256.yaml", "schema.py"):  # of the authors' values
        numbers |= {float(word) for word in _NUMBER.findall((ROOT / "seqtrack" / "config" / source).read_text())}

    def is_rounded(word: str, share: bool) -> bool:
        if word in words:
            return True
        if word.isdigit():
            return float(word) in numbers
        digits = len(word.partition(".")[2])
        forms = (f".{digits}f", ".3g") if "e" not in word else (".3g",)
        return any(
            f"{value:{form}}" == word or (share and f"{100 * value:{form}}" == word)
            for value in numbers
            for form in forms
        )

    body = re.sub(r"## \d+\. (Time|Uploaded files|Team)\n.*?(?=\n## |\Z)", "", report, flags=re.DOTALL)
    body = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    body = re.sub(r"`[^`\n]*`|!?\[[^\]\n]*\]\([^)\n]*\)|^#.*$", "", body, flags=re.MULTILINE)
    times = {clock(value) for value in numbers if value < 1e7}
    missing = [
        f"{word} in {line!r}"
        for line in body.splitlines()
        for word in _NUMBER.findall(line)
        if not is_rounded(word, "%" in line)
    ]
    return missing + [time for time in re.findall(r"\d+:\d\d:\d\d", body) if time not in times]


@pytest.fixture(scope="module")
def output(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in which this module's reports are written. Change nothing else in it."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("report") / "output"))


@pytest.fixture(scope="module")
def report(output: Path) -> str:
    return written(output)


@pytest.fixture(scope="module")
def team_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("team") / "team.yaml"
    path.write_text(TEAM)
    return path


class TestNumbers:
    def test_every_number_is_in_a_file_of_the_run(self, output: Path, report: str) -> None:
        assert unfounded(report, output) == []
        assert len(_NUMBER.findall(report)) > 200

    @pytest.mark.parametrize("where", ["loss", "AUC", "samples"])
    def test_a_number_that_nobody_measured_is_noticed(self, output: Path, report: str, where: str) -> None:
        true = {
            "loss": f"{metrics(output, 'phase_1')[0]['loss']:.5f}",
            "AUC": re.search(r"AUC (\d+\.\d+) on", report)[1],  # type: ignore[index]
            "samples": "| 88 | 6 |",
        }[where]
        assert true in report
        false = "| 53717 | 6 |" if where == "samples" else str(round(float(true) + 0.00007, 5))
        assert unfounded(report.replace(true, false), output)

    def test_the_tables_of_epochs_and_times_are_the_records_of_the_log(self, output: Path, report: str) -> None:
        training = section(report, "Training, epoch by epoch")
        statistics_rows = rows(section(report, "Time"))
        for number, (phase, epochs) in enumerate((("phase_1", [1, 2, 3]), ("phase_2", [2, 3]))):
            text = training.split(f"### {phase}", 1)[1].split("###", 1)[0]
            records = metrics(output, phase)
            assert [record["epoch"] for record in records] == epochs
            for row, record in zip(rows(text)[: len(epochs)], records, strict=True):
                name = f"{phase}/checkpoints/SEQTRACK_ep{record['epoch']:04d}.json"
                assert row == [
                    str(record["epoch"]),
                    f"{record['loss']:.5f}",
                    f"{record['iou']:.5f}",
                    str(record["samples"]),
                    str(record["steps"]),
                    clock(record["time_s"]),
                    f"{record['samples_per_s']:.1f}",
                    f"{100 * record['data_wait_share']:.1f} %",
                    " ".join(f"{rate:.3g}" for rate in record["lr"]),
                    f"`{json.loads((output / name).read_text())['sha256'][:12]}`",
                ]
            times = [record["time_s"] for record in records]
            assert statistics_rows[number] == [
                phase,
                str(len(records)),
                clock(sum(times)),
                f"{statistics.fmean(times):.1f}",
                f"{min(times):.1f}",
                f"{max(times):.1f}",
                f"{sum(record['samples'] for record in records) / sum(times):.1f}",
                f"{100 * sum(record['data_wait_s'] for record in records) / sum(times):.1f} %",
            ]
        assert len(rows(training)) == 3 + 2 + 1, "phase 2 validated once"

    def test_the_evaluation_table_is_the_evaluations(self, output: Path, report: str) -> None:
        evaluation = json.loads((output / "phase_1" / "evaluation" / "evaluation.json").read_text())
        table = {row[0]: row[1:] for row in rows(section(report, "Evaluation on held-out sequences"))[:5]}
        assert {"epoch 1", "epoch 2", "epoch 3", "untrained", "static box"} == set(table)
        for tracker in evaluation["trackers"]:
            mean = tracker["mean"]
            assert table[tracker["name"]][:2] == [f"{mean['auc']:.3f}", f"{mean['op50']:.3f}"]

    def test_uploaded_files_and_digests_are_true(self, output: Path, report: str) -> None:
        listed = {row[0].strip("`"): row for row in rows(section(report, "Uploaded files"))}
        for path in sorted((output / "phase_1" / "checkpoints").iterdir()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            row = listed[f"phase_1/checkpoints/{path.name}"]
            assert row[1:4] == [str(path.stat().st_size), f"`{digest}`", "verified"]
        boxes = list((output / "phase_1" / "evaluation" / "boxes").rglob("*.txt"))
        grouped = listed[f"phase_1/evaluation/boxes/`: {len(boxes)} files"]
        assert grouped[1] == str(sum(path.stat().st_size for path in boxes))
        checkpoints = section(report, "Checkpoints")
        for path in output.glob("phase_*/checkpoints/*.json"):
            manifest = json.loads(path.read_text())
            assert manifest["sha256"] in checkpoints and manifest["weights_sha256"] in checkpoints


def test_verdict_and_log_lines_are_quoted_exactly(output: Path, report: str) -> None:
    text = section(report, "Is the resumed run the same run?")
    digest = hashlib.sha256((output / "comparison" / "certificate.json").read_bytes()).hexdigest()
    assert "**identical**" in text and digest in text
    quoted = re.findall(r"^(\S+\.log):(\d+): (.*)$", text, flags=re.MULTILINE)
    assert any("resumes after step" in line for _, _, line in quoted)
    for name, number, line in quoted:
        logs = [path.read_text().splitlines() for path in output.glob(f"phase_*/logs/{name}")]
        assert any(len(log) >= int(number) and log[int(number) - 1] == line for log in logs)


def test_another_verdict_is_reported_unchanged(finished_run: Path) -> None:
    file = finished_run / "comparison" / "certificate.json"
    changes = {"verdict": "differs", "first_difference": "epoch 2: model"}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    report = written(finished_run)
    assert "**differs**" in report and "epoch 2: model" in report and "identical" not in report


def test_what_was_not_run_is_marked_as_such_down_to_a_run_that_has_only_begun(finished_run: Path, report: str) -> None:
    for gone, title in {
        "phase_1/evaluation": "Evaluation on held-out sequences",
        "comparison": "Is the resumed run the same run?",
        ".uploads": "Uploaded files",
        "phase_2": "Training, epoch by epoch",
    }.items():
        shutil.rmtree(finished_run / gone)
        after = section(written(finished_run), title)
        assert after.count("**Not run.**") == section(report, title).count("**Not run.**") + 1
    for name in ("phase_1/checkpoints", "phase_1/plots"):
        shutil.rmtree(finished_run / name)
    (finished_run / "phase_1" / "logs" / "metrics.jsonl").write_text("")
    report = written(finished_run)
    assert report.count("**Not run.**") >= 6
    assert unfounded(report, finished_run) == []


@pytest.mark.parametrize("make", [lambda output: write_report(output, Team()), model_card], ids=["report", "card"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("phase_1/evaluation/evaluation.json", '{"half": '),
        ("phase_1/dataset.json", '{"sources": 5}'),
        ("comparison/certificate.json", '{"verdict": "identical"}'),
        ("phase_1/logs/metrics.jsonl", '{"type": "epoch", "epoch": []}\n'),
    ],
)
def test_an_invalid_file_is_refused_rather_than_left_out(
    finished_run: Path, make: Callable[[Path], object], name: str, content: str
) -> None:
    (finished_run / name).write_text(content)
    with pytest.raises(UserError) as refusal:
        make(finished_run)
    assert refusal.value.code == "side_file.invalid" and str(finished_run / name) in refusal.value.problems[0]


def test_configuration_lists_every_difference_from_the_authors(output: Path, report: str) -> None:
    mine = load_config(str(output / "phase_1" / "config.yaml"))
    differences = compare_configs(load_config("seqtrack_b256"), mine)
    assert len(differences) > 20
    assert [row[0].strip("`") for row in rows(section(report, "Configuration"))] == [one.key for one in differences]


def test_links_hold_from_every_folder_that_has_a_report(output: Path) -> None:
    for path in write_report(output, Team()):
        links = re.findall(r"\]\(([^)]+)\)", path.read_text())
        assert len(links) > 10
        assert all((path.parent / link).is_file() for link in links)


def test_every_requirement_leads_to_the_lines_of_its_functions(report: str) -> None:
    text = section(report, "Functions behind each requirement")
    for place in (find(name) for names in REQUIREMENTS.values() for name in names):
        line = (ROOT / place.file).read_text().splitlines()[place.line - 1]
        assert re.search(rf"(def|class) {place.function.rsplit('.', maxsplit=1)[-1]}\b", line)
        assert f"`{place.file}:{place.line}`" in text
    for name in ("tokens:no_such", "nowhere:tokens", "training.state:TrainState.no_such"):
        with pytest.raises(LookupError):
            find(name)


def test_options_take_precedence_over_the_teams_file(team_file: Path) -> None:
    team = read_team(team_file, {"course": "Vision", "title": None, "members": []})
    assert (team.number, team.course) == ("7", "Vision")
    assert team.members == ("Ada Lovelace, 123450", "Alan Turing")
    assert read_team(team_file, {"members": ["Grace Hopper"]}).members == ("Grace Hopper",)


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("members: Ada\n", "report.team", "members"),
        ("teem: x\nnmber: 2\n", "report.team", "nmber"),
        ("- a\n- b\n", "report.team", "title"),
        ("title: [1, 2]\n", "report.team", "title"),
        ("title: [1\n", "report.team", "line 2"),
        (None, "file.unreadable", "team.yaml"),
    ],
)
def test_an_invalid_file_of_a_team_is_refused(tmp_path: Path, text: str | None, code: str, named: str) -> None:
    if text is not None:
        (tmp_path / "team.yaml").write_text(text)
    with pytest.raises(UserError) as refusal:
        read_team(tmp_path / "team.yaml", {})
    assert refusal.value.code == code
    assert any(named in problem for problem in refusal.value.problems)


def test_the_page_is_self_contained_and_has_everything(output: Path, team_file: Path) -> None:
    markdown = written(output, read_team(team_file, {}))
    page = report_page(markdown, output)
    assert not re.search(r"<(script|link|iframe|object)\b|url\(|@import", page)
    sources = re.findall(r'src="([^"]{0,40})', page)
    assert len(sources) > 8 and all(source.startswith("data:image/png;base64,") for source in sources)
    for tag, mark in {"h2": "## ", "table": r"\|[-:|]+\|$", "img": r"!\["}.items():
        assert page.count(f"<{tag}") == len(re.findall(f"^{mark}", markdown, flags=re.MULTILINE))
        assert tag == "img" or page.count(f"<{tag}") == page.count(f"</{tag}>")
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert len(anchors) == 11 and all(f'id="{anchor}"' in page for anchor in anchors)
    assert "| Team | The \\| Trackers |" in markdown and "| Member 1 | Ada Lovelace, 123450 |" in markdown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert 'href="https://example.org/a/b"' in page and "[b](//evil.example/b)" in page


def test_names_and_log_lines_of_a_run_are_text_in_every_format(finished_run: Path) -> None:
    hostile = "x\n\n# Injected\n\n<script>alert(1)</script> | [y](javascript:z) [a](//evil)"
    for name, change in {
        "phase_1/dataset.json": lambda d: d["sources"][0]["classes"].update({hostile: {**CLASS}}),
        "phase_1/environment.json": lambda d: d["versions"].update({hostile: hostile}),
        "phase_1/run.json": lambda d: d.update(config=hostile),
        "comparison/certificate.json": lambda d: d.update(remarks=[hostile], first_difference=hostile),
        "phase_1/evaluation/evaluation.json": lambda d: d["trackers"][0].update(name=hostile),
    }.items():
        values = json.loads((finished_run / name).read_text())
        change(values)
        (finished_run / name).write_text(json.dumps(values))
    with next((finished_run / "phase_1" / "logs").glob("*.log")).open("a") as log:
        log.write(f"resumes after step ```\n{hostile} guarantee\n")
    shutil.rmtree(finished_run / "phase_2")  # the card takes the data set of the last phase
    for text in (written(finished_run), model_card(finished_run).split("---", 2)[2]):
        page = report_page(text, finished_run)
        assert page.count("<h1") == 1
        assert "<script" not in page and not re.search(r'href="(javascript|//)', page)
        assert not re.search(r"<h1>[^<]*Injected", page)


def test_the_command_writes_every_file_or_ends_with_a_user_error(
    finished_run: Path, team_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTPUT_DIR", str(finished_run))
    assert main(["report", "--team", str(team_file), "--member", "Grace Hopper", "--html"]) == 0
    names = ("report.md", "phase_1/report.md", "phase_2/report.md", "report.html")
    assert capsys.readouterr().out.split() == [str(finished_run / name) for name in names]
    assert "Grace Hopper" in (finished_run / "report.html").read_text()
    (finished_run / "nothing").mkdir()
    monkeypatch.setenv("OUTPUT_DIR", str(finished_run / "nothing"))
    assert main(["report"]) == 2
    assert "[report.nothing]" in capsys.readouterr().err
