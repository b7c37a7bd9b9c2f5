"""docs/formats.md agrees with a real run: every field is documented, and every documented field is written."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from runs import finished, uninterrupted

__all__ = ["finished", "uninterrupted"]

DOCUMENT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


class Field(NamedTuple):
    """A row of a table: the field's name, whether it is optional, and the other cells."""

    name: str
    optional: bool
    cells: str

    def covers(self, path: str) -> bool:
        # A star stands for names that vary, which may have dots in them.
        return re.fullmatch(re.escape(self.name).replace(r"\*", ".+"), path) is not None


def table(section: str, head: str) -> list[Field]:
    """The rows of the table of a section whose first column has this head."""
    text = re.split(rf"^## {re.escape(section)}\n", DOCUMENT, flags=re.MULTILINE)[1].split("\n## ")[0]
    lines = text.split(f"| {head} |")[1].splitlines()[2:]
    rows = [re.match(r"\| `([^`]+)` \|(.*)", line) for line in lines]
    end = next((at for at, row in enumerate(rows) if row is None), len(rows))
    return [Field(row[1].replace("?", ""), "?" in row[1], row[2]) for row in rows[:end] if row]


def places(value: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """The paths of all values, and whether there is nothing below one."""
    inner: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        inner = [(f"{path}.{key}".removeprefix("."), below) for key, below in value.items()]
    elif isinstance(value, list):
        inner = [(f"{path}[]", below) for below in value]
        yield f"{path}[]", not value
    if path:
        yield path, not inner and not isinstance(value, list)
    for name, below in inner:
        yield from places(below, name)


def differences(value: Any, fields: list[Field]) -> list[str]:
    """Undocumented fields, documented fields that are not written, and a different version."""
    assert fields
    there = dict.fromkeys(places(value))
    above = [field.name for field in fields]
    problems = [
        f"{path} is not documented"
        for path, is_leaf in there
        if is_leaf and not any(one.covers(path) for one in fields)
        and not any(name.startswith((f"{path}.", f"{path}[]")) for name in above)
    ]  # fmt: skip
    required = [field for field in fields if not field.optional]
    problems += [f"{one.name} is not written" for one in required if not any(one.covers(path) for path, _ in there)]
    versions = [field for field in fields if field.name in ("format", "version")]
    return problems + [f"{one.cells} is not the version" for one in versions if str(value[one.name]) not in one.cells]


FILES = [
    ("phase_N/run.json", "field", "phase_1/run.json"),
    ("phase_N/run.json", "field", "phase_2/run.json"),
    ("phase_N/environment.json", "field", "phase_1/environment.json"),
    ("phase_N/dataset.json", "field", "phase_1/dataset.json"),
    ("phase_N/checkpoints/SEQTRACK_epNNNN.json", "field", "phase_2/checkpoints/SEQTRACK_ep0002.json"),
    ("phase_N/audit.json", "field", "phase_1/audit.json"),
    ("comparison/certificate.json", "field", "comparison/certificate.json"),
    ("phase_N/evaluation/evaluation.json", "field", "phase_1/evaluation/evaluation.json"),
    (".uploads/", "status.json", ".uploads/status.json"),
]


def test_every_field_of_every_file_is_documented(finished: Path, demo_data: Path) -> None:
    found = [(json.loads((finished / place).read_bytes()), table(section, head)) for section, head, place in FILES]
    marker = json.loads((demo_data / "demo" / "demo.json").read_text())
    found.append((marker, table("The data folder", "data/demo/demo.json")))
    lines = (finished / "phase_2" / "logs" / "metrics.jsonl").read_text().splitlines()
    kinds = set(re.findall(r"^\| record `(\w+)`", DOCUMENT, re.MULTILINE))
    fields = {kind: table("phase_N/logs/metrics.jsonl", f"record `{kind}`") for kind in kinds}
    records = [json.loads(line) for line in lines]
    assert {record["type"] for record in records} == kinds
    found += [(record, fields[record["type"]]) for record in records]
    data = (finished / "phase_1" / "checkpoints" / "SEQTRACK_ep0002.safetensors").read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    section = "phase_N/checkpoints/SEQTRACK_epNNNN.safetensors"
    found.append((json.loads(head.pop("__metadata__")["state"]), table(section, "value in `state`")))
    found.append((dict.fromkeys(head), table(section, "tensor")))
    assert [problem for value, documented in found for problem in differences(value, documented)] == []
    columns = (finished / "phase_1" / "evaluation" / "evaluation.csv").read_text().splitlines()[0].split(",")
    listed = DOCUMENT.split("with the columns")[1].split(";")[0]
    assert re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", listed)) == columns


# Files whose documented name has a variable part.
VARIABLE = {
    r"phase_\d": "phase_N",
    r"_ep\d{4}": "_epNNNN",
    r"seqtrack-\w+\.log": "seqtrack-CONFIG.log",
    r".*/evaluation/boxes/[^/]+/[^/]+\.txt": "boxes/<tracker>/<sequence>.txt",
    r".*/logs/tensorboard/events\.out\.tfevents.*": "logs/tensorboard/",
    r".*/evaluation/plots/[^/]+": "plots/",
}


def is_documented(name: str) -> bool:
    for pattern, place in VARIABLE.items():
        name = re.sub(pattern, place, name)
    below_phase, last = name.partition("/")[2], name.rpartition("/")[2]
    document = DOCUMENT.replace("## ", " ").replace(", NAME.txt", "")
    return any(one and (f"`{one}`" in document or f" {one}\n" in document) for one in (name, below_phase, last))


def test_every_file_of_a_run_is_documented(finished: Path) -> None:
    files = [path.relative_to(finished).as_posix() for path in sorted(finished.rglob("*")) if path.is_file()]
    seen = [one for one in files if not one.startswith(".uploads/xet") and not one.endswith((".lock", "-wal", "-shm"))]
    assert len(seen) > 30
    assert [name for name in seen if not is_documented(name)] == []
    assert not is_documented("phase_1/strange.bin") and not is_documented("phase_1/logs/other/metrics.bin")


def test_differences_are_found() -> None:
    fields = [Field("format", False, " `some/1` | version |"), Field("a[].b", False, ""), Field("c.*", True, "")]
    good = {"format": "some/1", "a": [{"b": 1}, {"b": 2}], "c": {"x.y": 3}}
    assert differences(good, fields) == []
    for bad in ({**good, "d": 1}, {**good, "a": [{"b": 1, "e": 2}]}, {**good, "a": []}, {**good, "format": "some/2"}):
        assert len(differences(bad, fields)) == 1
