"""Every number of a report is in a file of the run, and what comes from files is never markup."""

import hashlib
import json
import re
import shutil
import statistics
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from seqtrack.cli import main
from seqtrack.config.loader import compare_configs, load_config
from seqtrack.errors import UserError
from seqtrack.reports.page import report_page
from seqtrack.reports.report import write_report
from seqtrack.reports.requirements import REQUIREMENTS, find, find_places
from seqtrack.reports.team import Team, read_team
from seqtrack.runtime.metrics_log import clock

READER = MarkdownIt("commonmark", {"html": True}).enable("table")
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
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def measured_values(output: Path) -> tuple[set[float], str]:
    """Every number in the run's structured files, and the text of all its files."""
    numbers: set[float] = set()
    texts: list[str] = []
    for path in sorted(output.rglob("*")):
        if path.suffix not in (".json", ".jsonl", ".yaml", ".log", ".csv") or not path.is_file():
            continue
        text = path.read_text()
        texts.append(text)
        documents = {
            ".json": lambda text: [json.loads(text)],
            ".jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
            ".yaml": lambda text: [yaml.safe_load(text)],
        }.get(path.suffix, lambda text: [])(text)
        for leaf in _leaves(documents):
            if isinstance(leaf, int | float) and not isinstance(leaf, bool):
                numbers.add(float(leaf))
    return numbers, "\n".join(texts)


def _is_rounded(word: str, numbers: set[float], *, share: bool) -> bool:
    """Whether a word is one of the numbers, rounded to the digits shown; integers must be integers in the file too."""
    if word.isdigit():
        return float(word) in numbers
    if "." in word and "e" not in word:
        decimals = len(word.split(".")[1])
        if any(
            f"{value:.{decimals}f}" == word or (share and f"{100 * value:.{decimals}f}" == word) for value in numbers
        ):
            return True
    return any(f"{value:.3g}" == word for value in numbers)


def unfounded(report: str, output: Path) -> list[str]:
    """Numbers of a report that no file of the run has, rounded to the digits shown.

    Covered by tests of their own: code (paths with lines, digests), the table of time statistics, uploads, headings.
    """
    numbers, text = measured_values(output)
    words = set(re.findall(r"[^\s,;:()\[\]{}\"']+", text))
    authors = (ROOT / "seqtrack/config/experiments/seqtrack_b256.yaml").read_text()
    defaults = {float(word) for word in _NUMBER.findall((ROOT / "seqtrack/config/schema.py").read_text())}
    numbers |= {float(word) for word in _NUMBER.findall(authors)} | defaults
    body = re.sub(r"## \d+\. (Time|Uploaded files|Team)\n.*?(?=\n## |\Z)", "", report, flags=re.DOTALL)
    body = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    body = re.sub(r"`[^`\n]*`|!?\[[^\]\n]*\]\([^)\n]*\)|^#.*$", "", body, flags=re.MULTILINE)
    assert len(body) > 1000 or "Not run" in report
    missing = []
    for line in body.splitlines():
        for word in _NUMBER.findall(line):
            if not (_is_rounded(word, numbers, share="%" in line) or word in words):
                missing.append(f"{word} in {line!r}")
        missing += [
            f"{time} in {line!r}"
            for time in re.findall(r"\d+:\d\d:\d\d", line)
            if time not in {clock(value) for value in numbers if value < 1e7}
        ]
    return missing


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

    def test_the_epoch_tables_are_the_records_of_the_log(self, output: Path, report: str) -> None:
        training = section(report, "Training, epoch by epoch")
        for phase, epochs in (("phase_1", [1, 2, 3]), ("phase_2", [2, 3])):
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
        assert len(rows(training)) == 3 + 2 + 1, "phase 2 validated once"

    def test_the_time_statistics_follow_from_the_records(self, output: Path, report: str) -> None:
        for row, phase in zip(rows(section(report, "Time")), ("phase_1", "phase_2"), strict=True):
            records = metrics(output, phase)
            times = [record["time_s"] for record in records]
            assert row == [
                phase,
                str(len(records)),
                clock(sum(times)),
                f"{statistics.fmean(times):.1f}",
                f"{min(times):.1f}",
                f"{max(times):.1f}",
                f"{sum(record['samples'] for record in records) / sum(times):.1f}",
                f"{100 * sum(record['data_wait_s'] for record in records) / sum(times):.1f} %",
            ]

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
            assert listed[f"phase_1/checkpoints/{path.name}"][1:4] == [
                str(path.stat().st_size), f"`{digest}`", "verified",
            ]  # fmt: skip
        boxes = list((output / "phase_1" / "evaluation" / "boxes").rglob("*.txt"))
        grouped = listed[f"phase_1/evaluation/boxes/`: {len(boxes)} files"]
        assert grouped[1] == str(sum(path.stat().st_size for path in boxes))
        checkpoints = section(report, "Checkpoints")
        for path in output.glob("phase_*/checkpoints/*.json"):
            manifest = json.loads(path.read_text())
            assert manifest["sha256"] in checkpoints and manifest["weights_sha256"] in checkpoints


class TestProof:
    def test_verdict_and_log_lines_are_quoted_exactly(self, output: Path, report: str) -> None:
        text = section(report, "Is the resumed run the same run?")
        digest = hashlib.sha256((output / "comparison" / "certificate.json").read_bytes()).hexdigest()
        assert "**identical**" in text and digest in text
        quoted = re.findall(r"^(\S+\.log):(\d+): (.*)$", text, flags=re.MULTILINE)
        assert any("resumes after step" in line for _, _, line in quoted)
        for name, number, line in quoted:
            logs = [path.read_text().splitlines() for path in output.glob(f"phase_*/logs/{name}")]
            assert any(len(log) >= int(number) and log[int(number) - 1] == line for log in logs)

    def test_another_verdict_is_reported_unchanged(self, finished_run: Path) -> None:
        file = finished_run / "comparison" / "certificate.json"
        changes = {"verdict": "differs", "first_difference": "epoch 2: model"}
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        report = written(finished_run)
        assert "**differs**" in report and "epoch 2: model" in report and "identical" not in report


class TestWhatWasNotRun:
    @pytest.mark.parametrize(
        ("gone", "title"),
        [
            ("phase_1/evaluation", "Evaluation on held-out sequences"),
            ("comparison", "Is the resumed run the same run?"),
            (".uploads", "Uploaded files"),
            ("phase_2", "Training, epoch by epoch"),
        ],
    )
    def test_is_marked_as_not_run(self, finished_run: Path, report: str, gone: str, title: str) -> None:
        shutil.rmtree(finished_run / gone)
        after = section(written(finished_run), title)
        assert after.count("**Not run.**") == section(report, title).count("**Not run.**") + 1

    def test_a_run_that_has_only_begun_has_a_report(self, finished_run: Path) -> None:
        for name in ("phase_2", "comparison", ".uploads", "phase_1/evaluation", "phase_1/checkpoints", "phase_1/plots"):
            shutil.rmtree(finished_run / name)
        (finished_run / "phase_1" / "logs" / "metrics.jsonl").write_text("")
        report = written(finished_run)
        assert report.count("**Not run.**") >= 6
        assert unfounded(report, finished_run) == []

    @pytest.mark.parametrize("name", ["phase_1/evaluation/evaluation.json", "comparison/certificate.json"])
    def test_an_invalid_file_is_refused_rather_than_guessed(self, finished_run: Path, name: str) -> None:
        (finished_run / name).write_text('{"half": ')
        with pytest.raises(UserError) as refusal:
            write_report(finished_run, Team())
        assert refusal.value.code == "side_file.invalid" and name in refusal.value.problems[0]


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
    for requirement, places in find_places().items():
        assert len(places) == len(REQUIREMENTS[requirement])
        for place in places:
            line = (ROOT / place.file).read_text().splitlines()[place.line - 1]
            assert re.search(rf"(def|class) {place.function.rsplit('.', maxsplit=1)[-1]}\b", line)
            assert f"`{place.file}:{place.line}`" in text
    for name in ("tokens:no_such", "nowhere:tokens", "training.state:TrainState.no_such"):
        with pytest.raises(LookupError):
            find(name)


class TestTeam:
    def test_options_take_precedence_over_the_file(self, team_file: Path) -> None:
        team = read_team(team_file, flags={"course": "Vision", "title": None}, members=[])
        assert (team.number, team.course) == ("7", "Vision")
        assert team.members == ("Ada Lovelace, 123450", "Alan Turing")
        assert read_team(team_file, flags={}, members=["Grace Hopper"]).members == ("Grace Hopper",)

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("members: Ada\n", "members"),
            ("teem: x\nnmber: 2\n", "nmber"),
            ("- a\n- b\n", "title"),
            ("title: [1, 2]\n", "title"),
            ("title: [1\n", "line 2"),
        ],
    )
    def test_an_invalid_file_is_refused(self, tmp_path: Path, text: str, named: str) -> None:
        (tmp_path / "team.yaml").write_text(text)
        with pytest.raises(UserError) as refusal:
            read_team(tmp_path / "team.yaml", flags={}, members=[])
        assert refusal.value.code == "report.team"
        assert any(named in problem for problem in refusal.value.problems)

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError) as refusal:
            read_team(tmp_path / "team.yaml", flags={}, members=[])
        assert refusal.value.code == "file.unreadable"


class _Balance(HTMLParser):
    """Refuses HTML whose tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def markdown(output: Path, team_file: Path) -> str:
    return written(output, read_team(team_file, flags={}, members=[]))


@pytest.fixture(scope="module")
def page(output: Path, markdown: str) -> str:
    return report_page(markdown, output)


class TestPage:
    def test_is_self_contained(self, page: str) -> None:
        assert not re.search(r"<(script|link|iframe|object)\b", page)
        sources = re.findall(r'src="([^"]{0,40})', page)
        assert len(sources) > 8 and all(source.startswith("data:image/png;base64,") for source in sources)
        assert not re.search(r"url\(|@import", page)

    def test_is_well_formed_with_every_table_heading_and_anchor(self, page: str, markdown: str) -> None:
        seen = _Balance(page).seen
        assert seen.count("h2") == len(re.findall(r"^## ", markdown, flags=re.MULTILINE)) == 11
        assert seen.count("table") == len(re.findall(r"^\|[-:|]+\|$", markdown, flags=re.MULTILINE))
        assert seen.count("img") == len(re.findall(r"^!\[", markdown, flags=re.MULTILINE))
        anchors = re.findall(r'href="#([^"]+)"', page)
        assert len(anchors) == 11 and all(f'id="{anchor}"' in page for anchor in anchors)

    def test_team_data_are_text_and_cannot_break_tables(self, page: str, markdown: str) -> None:
        assert "| Team | The \\| Trackers |" in markdown and "| Member 1 | Ada Lovelace, 123450 |" in markdown
        assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page

    def test_notes_may_link_to_safe_addresses_only(self, output: Path) -> None:
        team = Team(notes="see [a](https://ok.example/a), [b](//evil.example/b) and <b>")
        page = report_page(written(output, team), output)
        assert 'href="https://ok.example/a"' in page
        assert 'href="//' not in page and "[b](//evil.example/b) and &lt;b&gt;" in page

    def test_names_and_log_lines_of_a_run_are_text_in_every_format(self, finished_run: Path) -> None:
        hostile = "x\n\n# Injected\n\n<script>alert(1)</script> | [y](javascript:z)"
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
        markdown = written(finished_run)
        tokens = READER.parse(markdown)
        assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1
        assert not [token for token in tokens if token.type == "html_block"]
        page = report_page(markdown, finished_run)
        _Balance(page)
        assert "<script" not in page and 'href="javascript' not in page
        assert not re.search(r"<h1>[^<]*Injected", page)

    @pytest.mark.parametrize(
        "address",
        [
            "javascript:alert",
            "&#106;avascript:alert",
            "//evil.example",
            "%2f%2fevil.example",
            "%5c%5cevil",
            "data:text/html,x",
        ],
    )
    def test_links_never_run_code_or_leave_unseen(self, tmp_path: Path, address: str) -> None:
        page = report_page(f"# A\n\n[x]({address}) [y](https://example.org) [z](a/b.json)\n", tmp_path)
        assert re.findall(r'href="([^"]*)"', page) == ["https://example.org", "a/b.json"]

    @pytest.mark.parametrize("image", ["../secret.png", "gone.png"])
    def test_an_image_that_is_missing_or_outside_the_folder_is_refused(self, tmp_path: Path, image: str) -> None:
        (tmp_path / "secret.png").write_bytes(b"x")
        (tmp_path / "output").mkdir()
        with pytest.raises(UserError) as refusal:
            report_page(f"# A\n\n![x]({image})\n", tmp_path / "output")
        assert refusal.value.code == "report.image" and Path(image).name in refusal.value.problems[0]


class TestCommand:
    def test_writes_markdown_into_every_folder_and_the_page_on_request(
        self, output: Path, team_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("OUTPUT_DIR", str(output))
        assert main(["report", "--team", str(team_file), "--member", "Grace Hopper", "--html"]) == 0
        names = ("report.md", "phase_1/report.md", "phase_2/report.md", "report.html")
        assert capsys.readouterr().out.split() == [str(output / name) for name in names]
        assert "Grace Hopper" in (output / "report.html").read_text()

    def test_nothing_to_report_is_a_user_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
        assert main(["report"]) == 2
        assert "[report.nothing]" in capsys.readouterr().err
