"""docs/formats.md agrees with a real run: every field is documented, and every documented field is written."""

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs import demo_data, finished, uninterrupted

__all__ = ["demo_data", "finished", "uninterrupted"]

DOCUMENT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Field:
    """A row of a table: the field's name, whether it is optional, and the other cells."""

    name: str
    optional: bool
    cells: str

    def covers(self, path: str) -> bool:
        # A star stands for names that vary, which may have dots in them.
        pattern = re.escape(self.name).replace(r"\*", ".+")
        return re.fullmatch(pattern, path) is not None

    def is_below(self, path: str) -> bool:
        return self.name.startswith((path + ".", path + "[]"))


def table(section: str, head: str, document: str = DOCUMENT) -> list[Field]:
    """The rows of the table of a section whose first column has this head."""
    parts = re.split(r"^## ", document, flags=re.MULTILINE)
    (text,) = [part for part in parts if part.splitlines()[0] == section]
    lines = text.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(f"| {head} |")]
    rows: list[Field] = []
    for line in lines[start + 2 :]:
        found = re.match(r"\| `([^`]+)` \|(.*)", line)
        if found is None:
            break
        rows.append(Field(found[1].replace("?", ""), "?" in found[1], found[2]))
    return rows


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all scalars, and of empty objects and lists."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value or [None]:
            yield from leaves(inner, f"{path}[]")
    else:
        yield path


def places(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all values, objects and lists included."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        yield f"{path}[]"
        for inner in value:
            yield from places(inner, f"{path}[]")


def differences(value: Any, fields: list[Field]) -> list[str]:
    """Undocumented fields, documented fields that are not written, and a different version."""
    assert fields
    found = sorted(set(leaves(value)))
    problems = [
        f"{path} is not documented"
        for path in found
        if not any(field.covers(path) or (field.is_below(path) and path in found) for field in fields)
    ]
    there = set(places(value))
    problems += [
        f"{field.name} is not written"
        for field in fields
        if not field.optional and not any(field.covers(path) for path in there)
    ]
    for field in fields:
        if field.name in ("format", "version") and isinstance(value, dict):
            written = str(value[field.name])
            if f"`{written}`" not in field.cells and f" {written} " not in field.cells:
                problems.append(f"{field.name} is {written}, documented is {field.cells}")
    return problems


def read(path: Path) -> Any:
    return json.loads(path.read_bytes())


@pytest.fixture
def output(finished: Path) -> Path:
    return finished


JSON_FILES = [
    ("phase_N/run.json", "field", "phase_1/run.json"),
    ("phase_N/run.json", "field", "phase_2/run.json"),
    ("phase_N/environment.json", "field", "phase_1/environment.json"),
    ("phase_N/dataset.json", "field", "phase_1/dataset.json"),
    ("phase_N/checkpoints/SEQTRACK_epNNNN.json", "field", "phase_2/checkpoints/SEQTRACK_ep0002.json"),
    ("comparison/certificate.json", "field", "comparison/certificate.json"),
    ("phase_N/evaluation/evaluation.json", "field", "phase_1/evaluation/evaluation.json"),
    (".uploads/", "status.json", ".uploads/status.json"),
]


@pytest.mark.parametrize(("section", "head", "place"), JSON_FILES, ids=[place for _, _, place in JSON_FILES])
def test_every_field_of_a_file_is_documented(output: Path, section: str, head: str, place: str) -> None:
    assert differences(read(output / place), table(section, head)) == []


@pytest.mark.parametrize("kind", ["interval", "epoch", "validation"])
def test_every_field_of_a_record_is_documented(output: Path, kind: str) -> None:
    lines = (output / "phase_2" / "logs" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["type"] == kind]
    assert records
    fields = table("phase_N/logs/metrics.jsonl", f"record `{kind}`")
    assert [problem for record in records for problem in differences(record, fields)] == []


def test_every_kind_of_record_is_documented(output: Path) -> None:
    lines = (output / "phase_2" / "logs" / "metrics.jsonl").read_text().splitlines()
    kinds = {json.loads(line)["type"] for line in lines}
    assert kinds == set(re.findall(r"^\| record `(\w+)`", DOCUMENT, re.MULTILINE))


def test_every_entry_of_a_checkpoint_file_is_documented(output: Path) -> None:
    data = (output / "phase_1" / "checkpoints" / "SEQTRACK_ep0002.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    state = json.loads(head.pop("__metadata__")["state"])
    section = "phase_N/checkpoints/SEQTRACK_epNNNN.safetensors"
    assert differences(dict.fromkeys(head), table(section, "tensor")) == []
    assert differences(state, table(section, "value in `state`")) == []


def test_the_demo_data_are_documented(output: Path, demo_data: Path) -> None:
    marker = read(demo_data / "demo" / "demo.json")
    assert differences(marker, table("The data folder", "data/demo/demo.json")) == []


def test_every_column_of_the_scores_is_documented(output: Path) -> None:
    head = (output / "phase_1" / "evaluation" / "evaluation.csv").read_text().splitlines()[0].split(",")
    listed = DOCUMENT.split("with the columns")[1].split(";")[0]
    assert re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", listed)) == head


def is_documented(path: str, document: str) -> bool:
    """Whether a file, or the folder of files like it, is documented."""
    name = re.sub(r"phase_\d", "phase_N", path)
    name = re.sub(r"_ep\d{4}", "_epNNNN", name)
    name = re.sub(r"seqtrack-\w+\.log", "seqtrack-CONFIG.log", name)
    parent, _, last = name.rpartition("/")
    if re.search(r"/evaluation/boxes/[^/]+/[^/]+\.txt$", name):
        return "`boxes/<tracker>/<sequence>.txt`" in document
    if last.startswith("events.out.tfevents"):
        return parent.endswith("/logs/tensorboard") and "`logs/tensorboard/`" in document
    if parent.endswith("/evaluation/plots"):
        return "`plots/`" in document
    folders = "/".join(parent.split("/")[1:])
    return any(f"`{one}`" in document or f" {one}\n" in document for one in (name, f"{folders}/{last}", last))


def test_every_file_of_a_run_is_documented(output: Path) -> None:
    files = [path.relative_to(output).as_posix() for path in sorted(output.rglob("*")) if path.is_file()]
    seen = [
        name for name in files if not name.startswith(".uploads/xet") and not name.endswith((".lock", "-wal", "-shm"))
    ]
    assert len(seen) > 30
    document = DOCUMENT.replace("## ", " ").replace(", NAME.txt", "")
    assert [name for name in seen if not is_documented(name, document)] == []
    assert not is_documented("phase_1/strange.bin", document)
    assert not is_documented("phase_1/logs/other/metrics.bin", document)


def test_differences_are_found() -> None:
    fields = [Field("format", False, " `some/1` | version |"), Field("a[].b", False, ""), Field("c.*", True, "")]
    good = {"format": "some/1", "a": [{"b": 1}, {"b": 2}], "c": {"x.y": 3}}
    assert differences(good, fields) == []
    assert differences({**good, "d": 1}, fields) == ["d is not documented"]
    assert differences({**good, "a": [{"b": 1, "e": 2}]}, fields) == ["a[].e is not documented"]
    assert differences({"format": "some/1", "a": []}, fields) == ["a[].b is not written"]
    assert differences({**good, "format": "some/2"}, fields)[0].startswith("format is some/2")
