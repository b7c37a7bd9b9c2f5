"""Every number of report and card is in a file of the run, and what comes from files is never markup."""

import hashlib
import json
import re
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from seqtrack.checkpoints.safetensors_io import sha256_file
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


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def section(report: str, title: str) -> str:
    return report.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows except headings and rulers."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rulers = {index for index, row in enumerate(cells) if set("".join(row)) <= set("-: ")}
    return [row for index, row in enumerate(cells) if index not in rulers and index + 1 not in rulers]


def metrics(output: Path, phase: str) -> list[dict[str, Any]]:
    lines = (output / phase / "logs" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["type"] == "epoch"]


def unfounded(report: str, output: Path) -> list[str]:
    """Numbers of a report that no file of the run has, rounded to the digits shown.

    Covered by tests of their own: code (paths with lines, digests), the table of time statistics, uploads, headings.
    """
    texts = [path.read_text() for path in output.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml", ".log")]
    words = {word for text in texts for word in re.findall(r"[^\s,;:()\[\]{}\"']+", text)}
    numbers = {float(word) for word in words if _NUMBER.fullmatch(word)}
    for source in ("experiments/seqtrack_b256.yaml", "schema.py"):  # of the authors' values
        numbers |= {float(word) for word in _NUMBER.findall((ROOT / "seqtrack" / "config" / source).read_text())}

    def is_rounded(word: str, factors: tuple[float, ...]) -> bool:
        forms = (".3g",) if "e" in word else (f".{len(word.partition('.')[2])}f", ".3g")
        shown = (f"{factor * value:{form}}" for value in numbers for form in forms for factor in factors)
        return word in words or (float(word) in numbers if word.isdigit() else word in shown)

    body = re.sub(r"## (Time|Uploaded files|Team)\n.*?(?=\n## |\Z)", "", report, flags=re.DOTALL)
    body = re.sub(r"\d{4}-\d\d-\d\d", "", body)
    body = re.sub(r"`[^`\n]*`|!?\[[^\]\n]*\]\([^)\n]*\)|^#.*$", "", body, flags=re.MULTILINE)
    times = {clock(value) for value in numbers if value < 1e7}
    return [
        f"{word} in {line!r}"
        for line in body.splitlines()
        for word in _NUMBER.findall(line)
        if not is_rounded(word, (1, 100) if "%" in line else (2**-30,) if "GiB" in line else (1,))
    ] + [time for time in re.findall(r"\d+:\d\d:\d\d", body) if time not in times]


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


def test_every_number_is_in_a_file_of_the_run(output: Path, report: str) -> None:
    assert unfounded(report, output) == []
    assert len(_NUMBER.findall(report)) > 200
    auc = re.search(r"AUC (\d+\.\d+) on", report)
    assert auc is not None
    for true, false in (
        (loss := f"{metrics(output, 'phase_1')[0]['loss']:.5f}", str(round(float(loss) + 0.00007, 5))),
        (auc[1], f"{auc[1]}7"),
        ("| 88 | 6 |", "| 53717 | 6 |"),
    ):
        assert true in report
        assert unfounded(report.replace(true, false), output), "a number that nobody measured is noticed"


def test_the_tables_are_the_records_of_the_log_and_of_the_evaluation(output: Path, report: str) -> None:
    training = rows(section(report, "Training, epoch by epoch"))
    records = [(phase, record) for phase in ("phase_1", "phase_2") for record in metrics(output, phase)]
    assert [record["epoch"] for _, record in records] == [1, 2, 3, 2, 3]
    assert len(training) == 3 + 2 + 1, "phase 2 validated once"
    for row, (phase, record) in zip(training, records, strict=False):
        manifest = json.loads((output / phase / f"checkpoints/SEQTRACK_ep{record['epoch']:04d}.json").read_text())
        assert row[:3] == [str(record["epoch"]), f"{record['loss']:.5f}", f"{record['iou']:.5f}"]
        assert row[5:7] == [clock(record["time_s"]), f"{record['samples_per_s']:.1f}"]
        assert row[-1] == f"`{manifest['sha256'][:12]}`"
    for row, phase in zip(rows(section(report, "Time")), ("phase_1", "phase_2"), strict=True):
        one = metrics(output, phase)
        times = [record["time_s"] for record in one]
        assert row[:3] == [phase, str(len(one)), clock(sum(times))]
        assert row[3:6] == [f"{value:.1f}" for value in (statistics.fmean(times), min(times), max(times))]
        assert row[6] == f"{sum(record['samples'] for record in one) / sum(times):.1f}"
        assert row[7] == f"{100 * sum(record['data_wait_s'] for record in one) / sum(times):.1f} %"
    evaluation = json.loads((output / "phase_1" / "evaluation" / "evaluation.json").read_text())
    table = {row[0]: row[1:] for row in rows(section(report, "Evaluation on held-out sequences"))[:6]}
    assert {"epoch 1", "epoch 2", "epoch 3", "untrained", "static box", "oracle crop"} == set(table)
    for tracker in evaluation["trackers"]:
        assert table[tracker["name"]][:2] == [f"{tracker['mean'][key]:.3f}" for key in ("auc", "op50")]


def test_uploads_digests_verdict_and_starts_are_those_of_their_files(output: Path, report: str) -> None:
    listed = {row[0].strip("`"): row for row in rows(section(report, "Uploaded files"))}
    for path in sorted((output / "phase_1" / "checkpoints").iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        row = listed[f"phase_1/checkpoints/{path.name}"]
        assert row[1:4] == [str(path.stat().st_size), f"`{digest}`", "verified"]
    boxes = list((output / "phase_1" / "evaluation" / "boxes").rglob("*.*"))
    grouped = listed[f"phase_1/evaluation/boxes/`: {len(boxes)} files"]
    assert grouped[1] == str(sum(path.stat().st_size for path in boxes))
    for path in output.glob("phase_*/checkpoints/*.json"):
        manifest = json.loads(path.read_text())
        assert manifest["sha256"] in (text := section(report, "Checkpoints")) and manifest["weights_sha256"] in text
    text = section(report, "Is the resumed run the same run?")
    digest = hashlib.sha256((output / "comparison" / "certificate.json").read_bytes()).hexdigest()
    assert "**identical**" in text and digest[:12] in text and digest not in text
    starts = [row for row in rows(text) if row[0] in ("phase_1", "phase_2")]
    for row, phase in zip(starts, ("phase_1", "phase_2"), strict=True):
        (start,) = json.loads((output / phase / "run.json").read_text())["starts"]
        expected = [start["source"] or "scratch", str(start["epoch"]), str(start["step"]), start["guarantee"]]
        assert row == [phase, "1", *expected, "; ".join(start["differences"]), "; ".join(start["config_changes"])]


def test_what_was_not_run_is_marked_as_such_down_to_a_run_that_has_only_begun(finished_run: Path, report: str) -> None:
    changes = {"verdict": "differs", "first_difference": "epoch 2: model"}
    edit(finished_run / "comparison" / "certificate.json", lambda values: values.update(changes))
    text = written(finished_run)
    assert "**differs**" in text and "epoch 2: model" in text and "identical" not in text
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
def test_an_invalid_file_is_refused_rather_than_left_out(finished_run: Path, make: Callable[[Path], object]) -> None:
    for name, content in {
        "phase_1/evaluation/evaluation.json": '{"half": ',
        "phase_1/dataset.json": '{"sources": 5}',
        "comparison/certificate.json": '{"verdict": "identical"}',
        "phase_1/logs/metrics.jsonl": '{"type": "epoch", "epoch": []}\n',
    }.items():
        before = (finished_run / name).read_text()
        (finished_run / name).write_text(content)
        with pytest.raises(UserError) as refusal:
            make(finished_run)
        assert refusal.value.code == "side_file.invalid" and str(finished_run / name) in refusal.value.problems[0]
        (finished_run / name).write_text(before)


def test_every_difference_from_the_authors_is_listed_and_links_hold_from_every_folder(
    output: Path, report: str
) -> None:
    mine = load_config(str(output / "phase_1" / "config.yaml"))
    differences = compare_configs(load_config("seqtrack_b256"), mine)
    assert len(differences) > 20
    assert [row[0].strip("`") for row in rows(section(report, "Configuration"))] == [one.key for one in differences]
    for path in write_report(output, Team()):
        links = re.findall(r"\]\(([^)]+)\)", path.read_text())
        assert len(links) > 10 and all((path.parent / link).is_file() for link in links)


def test_every_requirement_leads_to_the_lines_of_its_functions(report: str) -> None:
    text = section(report, "Functions behind each requirement")
    for place in (find(name) for names in REQUIREMENTS.values() for name in names):
        line = (ROOT / place.file).read_text().splitlines()[place.line - 1]
        assert re.search(rf"(def|class) {place.function.rsplit('.', maxsplit=1)[-1]}\b", line)
        assert f"`{place.file}:{place.line}`" in text
    with pytest.raises(LookupError):
        find("training.state:TrainState.no_such")


def test_options_take_precedence_over_the_teams_file_and_an_invalid_one_is_refused(team_file: Path) -> None:
    team = read_team(team_file, {"course": "Vision", "title": None, "members": []})
    assert (team.number, team.course, team.members) == ("7", "Vision", ("Ada Lovelace, 123450", "Alan Turing"))
    assert read_team(team_file, {"members": ["Grace Hopper"]}).members == ("Grace Hopper",)
    other = team_file.with_name("other.yaml")
    for text, code, named in (
        (None, "file.unreadable", "other.yaml"),
        ("members: Ada\n", "report.team", "members"),
        ("teem: x\nnmber: 2\n", "report.team", "nmber"),
        ("- a\n- b\n", "report.team", "title"),
        ("title: x\ntitle: x\n", "report.team", "'title'"),
        ("team: {reflections: {Ada: x, Ada: y}}\n", "report.team", "'Ada'"),
        ("title: [1\n", "report.team", "line 2"),
        ("title: 2024-13-01\n", "report.team", "other.yaml"),
        ("title: " + "[" * 5000, "report.team", "other.yaml"),
    ):
        if text is not None:
            other.write_text(text)
        with pytest.raises(UserError) as refusal:
            read_team(other, {})
        assert refusal.value.code == code and any(named in problem for problem in refusal.value.problems)


def test_the_page_is_self_contained_and_has_everything(output: Path, team_file: Path) -> None:
    markdown = written(output, read_team(team_file, {}))
    page = report_page(markdown, output)
    assert not re.search(r"<(script|link|iframe|object)\b|url\(|@import", page)
    sources = re.findall(r'src="([^"]{0,40})', page)
    assert len(sources) > 8 and all(source.startswith("data:image/png;base64,") for source in sources)
    for tag, mark in {"h2": "## ", "table": r"\| ?-[-:| ]+\|$", "img": r"!\["}.items():
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
        edit(finished_run / name, change)
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
    shutil.rmtree(finished_run / "phase_1" / "checkpoints")
    shutil.rmtree(finished_run / "phase_2" / "checkpoints")
    with pytest.raises(UserError) as refusal:
        model_card(finished_run)
    assert refusal.value.code == "report.nothing"


def front_matter(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---")[1]))


def test_the_card_has_the_measured_numbers_plots_and_digests(finished: Path) -> None:
    text = model_card(finished, repo="me/run")
    manifests = [json.loads(path.read_text()) for path in sorted(finished.glob("phase_*/checkpoints/*.json"))]
    assert len(manifests) == 5
    for one in manifests:
        row = f"| {one['epoch']} | {one['step']} | {one['loss']:.5f} | {one['iou']:.5f} | "
        assert row in text
        phase = f"phase_{one['phase']}"
        assert f"| [`{one['file']}`]({phase}/checkpoints/{one['file']}) |" in text and (finished / phase).is_dir()
        assert one["sha256"] in text and one["weights_sha256"] in text
    assert manifests[0]["config_digest"] in text and manifests[0]["data_digest"] in text
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert "phase_1/plots/phase_1_loss.png" in links and all((finished / link).is_file() for link in links)
    assert 'Tracker.load("hf://me/run/phase_2/checkpoints/SEQTRACK_ep0003.safetensors")' in text
    assert "@inproceedings{" in text
    assert "**identical**" in text
    assert front_matter(text)["tags"].count("synthetic-data") == 1 and "datasets" not in front_matter(text)


def test_what_was_not_measured_is_not_in_the_card_and_known_data_sets_are_linked(finished_run: Path) -> None:
    shutil.rmtree(finished_run / "phase_2")
    shutil.rmtree(finished_run / "comparison")
    (finished_run / "phase_1" / "logs" / "metrics.jsonl").write_text('{"cut off by a kill')
    real = {"name": "LASOT", "synthetic": False}
    edit(finished_run / "phase_1" / "dataset.json", lambda values: values["sources"][0].update(real))
    text = model_card(finished_run)
    rows = [line for line in text.splitlines() if "[`SEQTRACK_ep" in line]
    assert len(rows) == 3 and all(" | – | " in row for row in rows), "no speed was measured"
    assert "**identical**" not in text and "phase_2" not in text
    head = front_matter(text)
    assert head["datasets"] == ["l-lt/LaSOT"] and "synthetic-data" not in head["tags"]


def test_log_lines_and_plots_that_somebody_edited_are_not_in_report_and_card(finished_run: Path) -> None:
    plots = [*finished_run.glob("phase_*/plots/phase_*.png"), *finished_run.glob("phase_*/evaluation/plots/*.png")]
    plots += finished_run.glob("comparison/*.png")
    drawn = [path for path in plots if path.name not in ("samples.png", "tracking.png")]
    before = {path: path.read_bytes() for path in drawn}
    assert len(before) >= 2 + 2 + 5 + 2
    for make in (written, model_card):
        for path in drawn:
            path.write_bytes(b"another picture")
        (finished_run / "phase_1" / "plots" / "unknown.png").write_bytes(b"")
        with next((finished_run / "phase_1" / "logs").glob("*.log")).open("a") as log:
            log.write("resumes after step 7 (checked twice); reproducibility guarantee\n")
        text = make(finished_run)
        assert "checked twice" not in text and "unknown" not in text
        assert {path: path.read_bytes() for path in drawn} == before


def test_an_audit_is_quoted_only_while_it_is_of_these_files(finished_run: Path) -> None:
    manifest = json.loads((finished_run / "phase_2" / "checkpoints" / "SEQTRACK_ep0003.json").read_text())
    segment = {
        "epoch": 3, "start_epoch": 2, "start_sha256": "1" * 64, "steps": 6, "records": 3, "states": [3],
        "verdict": "confirmed", "difference": None, "largest_difference": 0.0,
    }  # fmt: skip
    audit = {
        "format": "seqtrack-audit/1", "verdict": "confirmed", "nonce": "d1ce | <b>", "phase": 2, "first_epoch": 2,
        "last_epoch": 3, "config_digest": manifest["config_digest"], "data_digest": manifest["data_digest"],
        "last_sha256": manifest["sha256"], "fingerprint": {}, "machine_differences": [], "segments": [segment],
        "steps": 6, "steps_of_run": 12, "seconds": 1.0, "created": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    metrics = sha256_file(finished_run / "phase_2" / "logs" / "metrics.jsonl")
    for verdict, last, records, write in (
        ("confirmed", manifest["sha256"], metrics, written),
        ("refuted", manifest["sha256"], metrics, model_card),
        ("confirmed", "0" * 64, metrics, written),
        ("confirmed", manifest["sha256"], "0" * 64, model_card),
    ):
        values = {**audit, "verdict": verdict, "last_sha256": last, "metrics_sha256": records}
        (finished_run / "phase_2" / "audit.json").write_text(json.dumps(values))
        text = write(finished_run)
        lines = [line for line in text.splitlines() if line.startswith("- phase_") and "audited" in line]
        quoted = (last, records) == (manifest["sha256"], metrics)
        assert (f"**{verdict}**" in lines[1] and "d1ce" in lines[1] and "6 steps of epoch 3" in lines[1]) is quoted
        assert (lines[1] == "- phase_2: not audited") is not quoted
        assert "<b>" not in report_page(text.split("---", 2)[-1], finished_run)


def test_an_evaluation_of_other_checkpoints_is_not_used(finished_run: Path) -> None:
    place = finished_run / "phase_1" / "evaluation" / "evaluation.json"
    edit(place, lambda values: values["trackers"][0]["source"].update(sha256="0" * 64))  # of epoch 1
    assert "model-index" not in front_matter(model_card(finished_run))
    assert "**Not run.**" in section(written(finished_run), "Evaluation on held-out sequences").split("### phase_2")[0]


def test_the_first_screen_has_verdict_date_and_plot_and_no_folder_of_this_machine(
    finished_run: Path, team_file: Path
) -> None:
    remark = f"{finished_run}/phase_1/environment.json: torch is 9; /output/phase_2/run.json: phase"
    edit(finished_run / "comparison" / "certificate.json", lambda values: values.update(remarks=[remark]))
    edit(finished_run / "phase_1" / "run.json", lambda values: values.update(config="/home/ada/mine.yaml"))
    edit(finished_run / "comparison" / "certificate.json", lambda d: d["runs"][0]["run"].update(config="/x/y.yaml"))
    markdown = written(finished_run, read_team(team_file, {}))
    page = report_page(markdown, finished_run)
    lead = page.split("<nav")[0]
    assert re.search(r"20\d\d-\d\d-\d\d · .*Trackers.* · Ada Lovelace, 123450", lead)
    assert 'class="verdict identical"' in lead and lead.count("<img") == 2
    for path in (str(finished_run), "/output/", "/home/ada"):
        assert path not in markdown
    assert "phase_1/environment.json: torch is 9; phase_2/run.json: phase" in markdown and "mine.yaml" in markdown
    assert "prefers-color-scheme: dark" in page
    whole = set(re.findall(r"[0-9a-f]{64}", re.sub(r'title="[0-9a-f]{64}"', "", page.split("<main>")[1])))
    assert not whole, "a digest is readable, and whole in its title"
    digest = json.loads((finished_run / "phase_1/checkpoints/SEQTRACK_ep0001.json").read_text())["sha256"]
    assert f'<code title="{digest}">{digest[:12]}</code>' in page


@pytest.mark.parametrize(
    "target", ["//evil.example/a", "/\\evil.example", "http://a.b", "javascript:x", "https:a", "ftp://a"]
)
def test_only_relative_paths_and_https_are_links(target: str, tmp_path: Path) -> None:
    page = report_page(f"# T\n\n[x]({target}) [y](a/b.md) [z](https://a.b/c)\n", tmp_path)
    assert re.findall(r'href="([^"#]+)"', page) == ["a/b.md", "https://a.b/c"]


def test_the_cards_metrics_are_those_of_the_evaluation(finished: Path) -> None:
    text = model_card(finished, repo="me/run")
    (result,) = model_index_to_eval_results(front_matter(text)["model-index"])[1][:1]
    evaluation = json.loads((finished / "phase_1" / "evaluation" / "evaluation.json").read_text())
    last = next(one for one in reversed(evaluation["trackers"]) if one["kind"] == "checkpoint")
    assert (result.metric_type, result.metric_value) == ("auc", round(last["mean"]["auc"], 3))
    assert result.dataset_name == "DEMO (synthetic)" and result.dataset_split == "test"
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    compile(code, "card", "exec")
    assert "from seqtrack import Tracker" in code and "tracker.track(image)" in code


def test_a_certificate_of_other_bytes_is_not_used(finished_run: Path) -> None:
    path = finished_run / "phase_2" / "checkpoints" / "SEQTRACK_ep0003.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "identical" not in written(finished_run) and "identical" not in model_card(finished_run)
