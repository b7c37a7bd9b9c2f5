"""Damaged configurations and overrides: each is refused with a code, or read with the numbers that it shows."""

import itertools
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from fuzz.mutations import cases, counts
from seqtrack.config.environment import configure
from seqtrack.config.loader import EXPERIMENTS, flat_values, load_config
from seqtrack.errors import UserError


def assert_same_numbers(text: str, values: dict[str, Any]) -> None:
    """Every number of an accepted configuration is the decimal number that the file shows."""

    def leaves(tree: Any, prefix: str) -> None:
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                leaves(value, f"{name}.")
            elif isinstance(value, str) and type(values.get(name)) in (int, float):
                assert values[name] == float(Decimal(value)) and "_" not in value, (name, value)

    leaves(yaml.load(text, Loader=yaml.BaseLoader), "")


@counts(30, 3500)
def test_a_damaged_configuration_is_refused_or_read_right(count: int, tmp_path: Path) -> None:
    originals = [(EXPERIMENTS / f"{name}.yaml").read_bytes() for name in ("demo", "seqtrack_b256")]
    others = enumerate((b"\xff\xfeT\0", b"TRAIN: {LR: \xff}", b"TRAIN: {LR: \0}"))
    for number, data in itertools.chain(others, cases(originals, count)):
        (tmp_path / "fuzz.yaml").write_bytes(data)
        try:
            values = flat_values(load_config(str(tmp_path / "fuzz.yaml")))
        except UserError as error:
            assert error.problems, number
        else:
            assert_same_numbers(data.decode(), values)


@counts(30, 3500)
def test_damaged_overrides_are_refused_or_read_right(count: int) -> None:
    original = b"TRAIN.LR 0.0002 TRAIN.EPOCH 3 DATA.CLASSES book,coin DATA.MEAN [0.4,0.4,0.4] TRAIN.AMP off"
    for number, data in cases([original], count):
        text = data.decode("utf-8", "surrogateescape").replace("\0", "")  # no environment can hold it
        try:
            _, config = configure({"CONFIG": "demo", "OVERRIDES": text})
            assert isinstance(config.TRAIN.LR, float) and isinstance(config.TRAIN.EPOCH, int), number
        except UserError as error:
            assert error.problems, number
