"""The Word document and the zip: opened by a reader, tables equal to the records, contents as listed."""

import csv
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import docx
import pytest

from seqtrack.cli import main
from seqtrack.errors import UserError
from seqtrack.evaluation.tables import HEADINGS
from seqtrack.reports.document import report_document
from seqtrack.reports.handin import write_hand_in
from seqtrack.reports.report import Team
from seqtrack.reports.requirements import REQUIREMENTS, find
from seqtrack.run_dir import HAND_IN_FILE

TEAM = """\
title: Assignment 4
team: The Trackers
members:
  - {name: Ada Lovelace, id: 12}
  - Alan Turing
reflections: {Ada Lovelace: "I learned <b>why</b> | a seed matters.", Alan Turing: "I read every log, twice."}
repository: https://example.org/a/b
"""


@pytest.fixture(scope="module")
def handed_in(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked hand-in of a run with two phases, of which the first is evaluated."""
    folder = tmp_path_factory.mktemp("hand_in")
    (folder / "team.yaml").write_text(TEAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTPUT_DIR", str(finished))
        assert main(["report", "--team", str(folder / "team.yaml"), "--zip"]) == 0
    with zipfile.ZipFile(finished / HAND_IN_FILE) as made:
        assert made.testzip() is None
        made.extractall(folder / "zip")
    return folder / "zip"


def _tables(folder: Path) -> list[list[list[str]]]:
    document = docx.Document(str(folder / "report.docx"))
    return [[[cell.text for cell in row.cells] for row in table.rows] for table in document.tables]


def test_the_documents_tables_are_the_records(handed_in: Path) -> None:
    tables = _tables(handed_in)
    evaluation = json.loads((handed_in / "phase_1/evaluation/evaluation.json").read_text())
    (means,) = [one for one in tables if one[0] == ["tracker", *HEADINGS.values()]]
    assert len(means) == 1 + len(evaluation["trackers"]) > 4
    for row, one in zip(means[1:], evaluation["trackers"], strict=True):
        values = {key: float(cell) for key, cell in zip(HEADINGS, row[1:], strict=True) if cell != "–"}
        assert row[0] == one["name"]
        assert values == {
            k: round(v, 1 if k in ("fps", "ms_a_frame") else 3) for k, v in one["mean"].items() if v is not None
        }
    (groups,) = [one for one in tables if one[0][1:3] == ["class or sequence", "checkpoint"]]
    found = {(level, name, who): row for level, name, who, *row in groups[1:]}
    epochs = [one for one in evaluation["trackers"] if one["kind"] == "checkpoint"]
    assert len(found) == len(groups) - 1 == len(epochs) * (2 + 2)
    for one in epochs:
        for level, kind in (("class", "classes"), ("sequence", "sequences")):
            for name, metrics in one[kind].items():
                row = found[level, name, one["name"]]
                assert [float(cell) for cell in row[:3]] == [round(metrics[k], 3) for k in ("mean_iou", "p20", "auc")]
                assert [float(cell) for cell in row[3:]] == [round(metrics[k], 1) for k in ("fps", "ms_a_frame")]
    records = [json.loads(line) for line in (handed_in / "phase_1/logs/metrics.jsonl").read_text().splitlines()]
    (training, *_) = [one for one in tables if one[0][:3] == ["epoch", "loss", "IoU"]]
    losses = [round(one["loss"], 5) for one in records if one["type"] == "epoch"]
    assert [float(row[1]) for row in training[1:]] == losses


def test_the_document_has_plots_people_and_what_they_wrote(handed_in: Path) -> None:
    document = docx.Document(str(handed_in / "report.docx"))
    texts = [one.text for one in document.paragraphs]
    assert texts[0] == "Assignment 4" == document.core_properties.title
    at = texts.index("Reflections")
    reflections = ["Ada Lovelace", "I learned <b>why</b> | a seed matters.", "Alan Turing", "I read every log, twice."]
    assert [text for text in texts[at + 1 :] if text] == reflections
    markdown = (handed_in / "report.md").read_text()
    assert len(document.inline_shapes) == len(re.findall(r"!\[", markdown)) > 8
    cells = [cell for table in _tables(handed_in) for row in table for cell in row]
    assert "https://example.org/a/b" in cells and "Ada Lovelace, 12" in cells


def test_the_zip_holds_what_it_lists_and_no_checkpoint(handed_in: Path) -> None:
    files = {one.relative_to(handed_in).as_posix(): one.read_bytes() for one in handed_in.rglob("*") if one.is_file()}
    lines = [line.split(maxsplit=2) for line in files.pop("CONTENTS.txt").decode().splitlines()]
    assert {name: (int(size), digest) for size, digest, name in lines} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    }
    wanted = ("report.docx", "report.html", "comparison/certificate.json", "phase_1/evaluation/plots/epochs.png")
    wanted += ("phase_1/evaluation/boxes/epoch_1/disk-21_time.txt", "phase_2/checkpoints/SEQTRACK_ep0003.json")
    assert {*wanted} <= {*files} and not [name for name in files if name.endswith(".safetensors")]
    team = json.loads(files["team.json"])
    assert team["members"] == ["Ada Lovelace, 12", "Alan Turing"] and len(team["reflections"]) == 2
    references = list(csv.DictReader(io.StringIO(files["code_references.csv"].decode())))
    places = [find(name) for names in REQUIREMENTS.values() for name in names]
    assert [(one["file"], int(one["line"])) for one in references] == [(one.file, one.line) for one in places]


@pytest.mark.parametrize("text", ["{members: [A], reflections: [x]}", "{members: [A], members: [B]}"])
def test_a_reflection_of_another_form_and_a_key_given_twice_are_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "team.yaml").write_text(text)
    assert main(["report", "--team", str(tmp_path / "team.yaml")]) == 2
    assert "[report.team]" in capsys.readouterr().err


def test_a_document_holds_any_text_and_a_file_that_is_no_image_is_an_error(tmp_path: Path) -> None:
    made = docx.Document(io.BytesIO(report_document("# a\x01b\n\nc\x0bd \ufffe\n", tmp_path, author="e\x02")))
    assert [one.text for one in made.paragraphs] == ["a\ufffdb", "c\ufffdd \ufffd"]
    for content in (b"", b"junk", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(UserError) as refused:
            report_document("![x](x.png)\n", tmp_path)
        assert refused.value.code == "report.image"


def test_links_out_of_the_folder_are_not_handed_in(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "report.md").write_text("x")
    (tmp_path / "output" / "report.txt").symlink_to(tmp_path / "secret")
    names = write_hand_in(tmp_path / "hand-in.zip", {"": tmp_path / "output"}, Team())
    assert names == ["CONTENTS.txt", "team.json", "code_references.csv", "report.md"]
