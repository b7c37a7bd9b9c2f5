"""Real annotations and boxes of published trackers, where the tester has them."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest


@dataclass(frozen=True)
class EvaluationData:
    """LaSOT's test annotations and trackers' boxes, all sequences behind one another."""

    folder: Path
    names: list[str]
    offsets: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    visible: npt.NDArray[np.bool_]

    def spans(self) -> list[slice]:
        return [slice(int(a), int(b)) for a, b in zip(self.offsets, self.offsets[1:], strict=False)]

    def results(self, tracker: str) -> npt.NDArray[np.float64]:
        with np.load(self.folder / f"results_{tracker}.npz") as stored:
            return stored["boxes"].astype(np.float64)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    folder = os.environ.get("SEQTRACK_TEST_DATA")
    if not folder:
        pytest.skip("SEQTRACK_TEST_DATA names no folder with real test data")
    return Path(folder)


@pytest.fixture(scope="session")
def lasot_eval(data_folder: Path) -> EvaluationData:
    folder = data_folder / "lasot_eval"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    with np.load(folder / "lasot_test_gt.npz") as stored:
        absent = np.unpackbits(stored["absent"])[: int(stored["n"])].astype(bool)
        return EvaluationData(
            folder, stored["names"].tolist(), stored["offsets"], stored["boxes"].astype(np.float64), ~absent
        )
