"""Damaged configurations and overrides: each is refused with a code, or read with the numbers that it shows."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from fuzz.mutations import cases
from seqtrack.config.environment import configure
from seqtrack.config.loader import EXPERIMENTS, config_from_text, flat_values, load_config
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


def try_configurations(count: int) -> None:
    originals = [(EXPERIMENTS / f"{name}.yaml").read_bytes() for name in ("demo", "seqtrack_b256")]
    for number, data in cases(originals, count):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue  # a file of other bytes is `test_a_configuration_file_of_other_bytes_is_refused`'s
        try:
            config = config_from_text(text, "fuzz.yaml")
        except UserError as error:
            assert error.problems, number
        else:
            assert_same_numbers(text, flat_values(config))


def try_overrides(count: int) -> None:
    original = b"TRAIN.LR 0.0002 TRAIN.EPOCH 3 DATA.CLASSES book,coin DATA.MEAN [0.4,0.4,0.4] TRAIN.AMP off"
    for number, data in cases([original], count):
        text = data.decode("utf-8", "surrogateescape")
        if "\0" in text:
            continue  # no environment can hold it
        try:
            _, config = configure({"CONFIG": "demo", "OVERRIDES": text})
        except UserError as error:
            assert error.problems, number
        else:
            assert isinstance(config.TRAIN.LR, float) and isinstance(config.TRAIN.EPOCH, int), number


@pytest.mark.parametrize("count", [30, pytest.param(3500, marks=(pytest.mark.long, pytest.mark.timeout(1800)))])
def test_a_damaged_configuration_is_refused_or_read_right(count: int) -> None:
    try_configurations(count)
    try_overrides(count)


@pytest.mark.parametrize("data", [b"\xff\xfeT\0", b"TRAIN: {LR: \xff}", b"TRAIN: {LR: \0}"])
def test_a_configuration_file_of_other_bytes_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "fuzz.yaml").write_bytes(data)
    with pytest.raises(UserError):
        load_config(str(tmp_path / "fuzz.yaml"))
