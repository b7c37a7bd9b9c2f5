"""The report says what the files of a run say: every number in it is in one of them."""

import json
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from seqtrack.errors import UserError
from seqtrack.reports.page import report_page
from seqtrack.reports.report import write_report
from seqtrack.reports.requirements import REQUIREMENTS, find, find_places
from seqtrack.reports.team import Team, read_team
from seqtrack.runtime.metrics_log import clock

READER = MarkdownIt("commonmark", {"html": True}).enable("table")
CLASS = {"sequences": 1, "frames": 1, "visible": 1, "absent": 0, "missing": 0}
ROOT = Path(__file__).resolve().parents[2]
_NUMBER = re.compile(r"(?<![\w.:/-])\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w:]|\.\d)")


def written(output: Path, team: Team | None = None) -> str:
    return write_report(output, team or Team())[0].read_text()


def section(report: str, title: str) -> str:
    return report.split(f". {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """Cells of every table row but headings and rulers."""
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
    """Whether a word is one of the numbers at the digits shown; a whole number must be whole in the file too."""
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
    """Numbers of a report that no file of the run holds, at the digits shown.

    Left to tests of their own: code (paths with lines, digests), the table of time statistics, uploads, headings.
    """
    numbers, text = measured_values(output)
    words = set(re.findall(r"[^\s,;:()\[\]{}\"']+", text))
    authors = (ROOT / "seqtrack/config/experiments/seqtrack_b256.yaml").read_text()
    defaults = {float(word) for word in _NUMBER.findall((ROOT / "seqtrack/config/schema.py").read_text())}
    numbers |= {float(word) for word in _NUMBER.findall(authors)} | defaults
    body = re.sub(r"## \d+\. (Time|Uploaded files|Team)\n.*?(?=\n## |\Z)", "", report, flags=re.DOTALL)
    body = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    body = re.sub(r"`[^`\n]*`|!?\[[^\]\n]*\]\([^)\n]*\)|^#.*$", "", body, flags=re.MULTILINE)
    assert len(body) > 1000 or "Not run" in report, "the report's own words must be left to look at"
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


class TestNumbers:
    def test_every_number_is_in_a_file_of_the_run(self, finished_run: Path) -> None:
        report = written(finished_run)
        assert unfounded(report, finished_run) == []
        assert len(_NUMBER.findall(report)) > 200

    @pytest.mark.parametrize("where", ["loss", "AUC", "samples"])
    def test_a_number_that_nobody_measured_is_noticed(self, finished_run: Path, where: str) -> None:
        report = written(finished_run)
        true = {
            "loss": f"{metrics(finished_run, 'phase_1')[0]['loss']:.5f}",
            "AUC": re.search(r"AUC (\d+\.\d+) on", report)[1],  # type: ignore[index]
            "samples": "| 48 | 6 |",
        }[where]
        assert true in report
        false = "| 53717 | 6 |" if where == "samples" else str(round(float(true) + 0.00007, 5))
        assert unfounded(report.replace(true, false), finished_run)

    def test_the_epoch_tables_are_the_records_of_the_log(self, finished_run: Path) -> None:
        report = written(finished_run)
        training = section(report, "Training, epoch by epoch")
        for phase, epochs in (("phase_1", [1, 2]), ("phase_2", [2])):
            table = rows(training.split(f"### {phase}", 1)[1].split("###", 1)[0])
            records = metrics(finished_run, phase)
            assert [record["epoch"] for record in records] == epochs
            for row, record in zip(table, records, strict=True):
                manifest = json.loads(
                    (finished_run / phase / "checkpoints" / f"SEQTRACK_ep{record['epoch']:04d}.json").read_text()
                )
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
                    f"`{manifest['sha256'][:12]}`",
                ]

    def test_the_time_statistics_follow_from_the_records(self, finished_run: Path) -> None:
        table = rows(section(written(finished_run), "Time"))
        for row, phase in zip(table, ("phase_1", "phase_2"), strict=True):
            records = metrics(finished_run, phase)
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

    def test_the_evaluation_table_is_the_evaluations(self, finished_run: Path) -> None:
        evaluation = json.loads((finished_run / "phase_1" / "evaluation" / "evaluation.json").read_text())
        table = {row[0]: row[1:] for row in rows(section(written(finished_run), "Evaluation on held-out sequences"))}
        report = section(written(finished_run), "Evaluation on held-out sequences")
        for tracker in evaluation["trackers"]:
            mean = tracker["mean"]
            fps = "–" if mean["fps"] is None else f"{mean['fps']:.3f}"
            assert f"| {tracker['name']} | {mean['auc']:.3f} | {mean['op50']:.3f} |" in report and fps in report
        assert {"epoch 1", "epoch 2", "untrained", "static box"} <= set(table)

    def test_uploaded_files_are_those_of_the_target(self, finished_run: Path) -> None:
        import hashlib

        text = section(written(finished_run), "Uploaded files")
        listed = {row[0].strip("`"): row for row in rows(text)}
        for path in sorted((finished_run / "phase_1" / "checkpoints").iterdir()):
            row = listed[f"phase_1/checkpoints/{path.name}"]
            assert row[1] == str(path.stat().st_size) and row[3] == "verified"
            assert row[2] == f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`"
        boxes = list((finished_run / "phase_1" / "evaluation" / "boxes").rglob("*.txt"))
        assert (
            f"| `phase_1/evaluation/boxes/`: {len(boxes)} files | {sum(path.stat().st_size for path in boxes)} |"
            in text
        )

    def test_digests_are_whole_and_true(self, finished_run: Path) -> None:
        text = section(written(finished_run), "Checkpoints")
        for manifest_file in finished_run.glob("phase_*/checkpoints/*.json"):
            manifest = json.loads(manifest_file.read_text())
            assert manifest["sha256"] in text and manifest["weights_sha256"] in text


class TestProof:
    def test_verdict_certificate_and_the_logs_own_words(self, finished_run: Path) -> None:
        text = section(written(finished_run), "Is the resumed run the same run?")
        certificate = json.loads((finished_run / "comparison" / "certificate.json").read_text())
        assert f"Verdict: **{certificate['verdict']}**" in text and certificate["verdict"] == "identical"
        quoted = re.findall(r"^(\S+\.log):(\d+): (.*)$", text, flags=re.MULTILINE)
        assert any("resumes after step" in line for _, _, line in quoted)
        for name, number, line in quoted:
            logs = [path.read_text().splitlines() for path in finished_run.glob(f"phase_*/logs/{name}")]
            assert any(len(log) >= int(number) and log[int(number) - 1] == line for log in logs)

    def test_another_verdict_is_reported_as_it_is(self, finished_run: Path) -> None:
        file = finished_run / "comparison" / "certificate.json"
        certificate = json.loads(file.read_text())
        certificate |= {"verdict": "differs", "first_difference": "epoch 2: model"}
        file.write_text(json.dumps(certificate))
        report = written(finished_run)
        assert "Verdict: **differs**. First difference: epoch 2: model" in report
        assert "**Comparison of the phases**: differs" in report


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
    def test_is_said_to_be_not_run(self, finished_run: Path, gone: str, title: str) -> None:
        before = section(written(finished_run), title).count("**Not run.**")
        shutil.rmtree(finished_run / gone)
        assert section(written(finished_run), title).count("**Not run.**") == before + 1

    def test_a_run_that_has_only_begun_has_a_report(self, finished_run: Path) -> None:
        for name in ("phase_2", "comparison", ".uploads", "phase_1/evaluation", "phase_1/checkpoints", "phase_1/plots"):
            shutil.rmtree(finished_run / name)
        (finished_run / "phase_1" / "logs" / "metrics.jsonl").write_text("")
        report = written(finished_run)
        assert report.count("**Not run.**") >= 6
        assert unfounded(report, finished_run) == []

    def test_without_any_phase_there_is_nothing_to_report(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="nothing to report"):
            write_report(tmp_path, Team())

    @pytest.mark.parametrize("name", ["phase_1/evaluation/evaluation.json", "comparison/certificate.json"])
    def test_a_damaged_file_is_refused_rather_than_guessed(self, finished_run: Path, name: str) -> None:
        (finished_run / name).write_text('{"half": ')
        with pytest.raises(UserError, match=Path(name).name):
            write_report(finished_run, Team())


def test_configuration_shows_every_difference_from_the_authors(finished_run: Path) -> None:
    from seqtrack.config.loader import compare_configs, load_config

    text = section(written(finished_run), "Configuration")
    mine = load_config(str(finished_run / "phase_1" / "config.yaml"))
    differences = compare_configs(load_config("seqtrack_b256"), mine)
    assert len(differences) > 20
    assert [row[0].strip("`") for row in rows(text)] == [one.key for one in differences]


def test_links_hold_from_wherever_a_report_is(finished_run: Path) -> None:
    for path in write_report(finished_run, Team()):
        links = re.findall(r"\]\(([^)]+)\)", path.read_text())
        assert len(links) > 10
        assert all((path.parent / link).is_file() for link in links)


class TestFunctions:
    def test_every_requirement_leads_to_the_line_where_its_function_begins(self) -> None:
        for requirement, places in find_places().items():
            assert len(places) == len(REQUIREMENTS[requirement])
            for place in places:
                line = (ROOT / place.file).read_text().splitlines()[place.line - 1]
                assert re.search(rf"(def|class) {place.function.rsplit('.', maxsplit=1)[-1]}\b", line)

    @pytest.mark.parametrize("name", ["tokens:no_such", "nowhere:tokens", "training.state:TrainState.no_such"])
    def test_a_function_that_is_not_there_is_an_error(self, name: str) -> None:
        with pytest.raises(LookupError):
            find(name)


class TestTeam:
    def test_a_file_and_flags_say_who_hands_it_in(self, team_file: Path) -> None:
        team = read_team(team_file, flags={"course": "Vision", "title": None}, members=[])
        assert (team.number, team.course) == ("7", "Vision")
        assert team.members == ("Ada Lovelace, 123450", "Alan Turing")
        assert read_team(team_file, flags={}, members=["Grace Hopper"]).members == ("Grace Hopper",)

    def test_team_data_stand_in_the_report_and_cannot_break_its_tables(
        self, finished_run: Path, team_file: Path
    ) -> None:
        report = written(finished_run, read_team(team_file, flags={}, members=[]))
        assert "| Team | The \\| Trackers |" in report and "| Member 1 | Ada Lovelace, 123450 |" in report

    def test_without_team_data_the_report_says_how_to_give_them(self, finished_run: Path) -> None:
        assert "Not given" in section(written(finished_run), "Team")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("members: Ada\n", "must be a list"),
            ("teem: x\nnmber: 2\n", "unknown key 'teem'"),
            ("- a\n- b\n", "expected `key: value`"),
            ("title: [1, 2]\n", "must be a text"),
            ("title: [1\n", "is not YAML"),
        ],
    )
    def test_a_file_of_another_form_is_refused(self, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / "team.yaml").write_text(text)
        with pytest.raises(UserError, match=re.escape(said)):
            read_team(tmp_path / "team.yaml", flags={}, members=[])

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot be read"):
            read_team(tmp_path / "team.yaml", flags={}, members=[])


class TestPage:
    @pytest.fixture
    def page(self, finished_run: Path, team_file: Path) -> str:
        report = written(finished_run, read_team(team_file, flags={}, members=[]))
        return report_page(report, finished_run)

    def test_notes_may_have_links_to_safe_places_only(self, finished_run: Path) -> None:
        team = Team(notes="see [a](https://ok.example/a), [b](//evil.example/b) and <b>")
        page = report_page(written(finished_run, team), finished_run)
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
        before = READER.parse(written(finished_run))
        assert [token.tag for token in before if token.type == "heading_open"].count("h1") == 1
        assert not [token for token in before if token.type == "html_block"]
        page = report_page(written(finished_run), finished_run)
        assert "<script" not in page and 'href="javascript' not in page
        assert not re.search(r"<h1>[^<]*Injected", page)

    def test_needs_nothing_but_itself(self, page: str) -> None:
        assert not re.search(r"<(script|link|iframe|object)\b", page)
        sources = re.findall(r'src="([^"]{0,40})', page)
        assert len(sources) > 8 and all(source.startswith("data:image/png;base64,") for source in sources)
        assert not re.search(r"url\(|@import", page)

    def test_what_comes_from_files_is_text_and_never_markup(self, page: str) -> None:
        assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page

    def test_is_well_formed_with_every_table_and_heading(self, page: str, finished_run: Path) -> None:
        from html.parser import HTMLParser

        class Balance(HTMLParser):
            def __init__(self) -> None:
                super().__init__()
                self.open: list[str] = []
                self.seen: list[str] = []

            def handle_starttag(self, tag: str, attrs: object) -> None:
                self.seen.append(tag)
                if tag not in ("meta", "img"):
                    self.open.append(tag)

            def handle_endtag(self, tag: str) -> None:
                assert self.open.pop() == tag

        parser = Balance()
        parser.feed(page)
        assert parser.open == []
        report = (finished_run / "report.md").read_text()
        assert parser.seen.count("h2") == len(re.findall(r"^## ", report, flags=re.MULTILINE)) == 11
        assert parser.seen.count("table") == len(re.findall(r"^\|[-:|]+\|$", report, flags=re.MULTILINE))
        assert parser.seen.count("img") == len(re.findall(r"^!\[", report, flags=re.MULTILINE))

    def test_a_heading_leads_to_its_section(self, page: str) -> None:
        for anchor in re.findall(r'href="#([^"]+)"', page):
            assert f'id="{anchor}"' in page

    def test_an_image_that_is_gone_is_an_error(self, finished_run: Path) -> None:
        with pytest.raises(UserError, match=r"gone\.png"):
            report_page("# A\n\n![x](gone.png)\n", finished_run)

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

    def test_an_image_from_outside_the_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "secret.png").write_bytes(b"x")
        (tmp_path / "output").mkdir()
        with pytest.raises(UserError) as refusal:
            report_page("# A\n\n![x](../secret.png)\n", tmp_path / "output")
        assert refusal.value.code == "report.image"
