"""Real annotations and boxes of published trackers if available, and a small run with drawn videos."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from runs import save_epoch

from seqtrack.config.loader import dump_config, load_config
from seqtrack.config.schema import Config
from seqtrack.data.demo import Plan, draw_demo
from seqtrack.data.lasot import open_lasot
from seqtrack.data.sequence import Sequence
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    """Every test here runs a model."""


@dataclass(frozen=True)
class EvaluationData:
    """LaSOT's test annotations and trackers' boxes, all sequences concatenated."""

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
def lasot_eval(test_data: Path) -> EvaluationData:
    folder = test_data / "lasot_eval"
    with np.load(folder / "lasot_test_gt.npz") as stored:
        absent = np.unpackbits(stored["absent"])[: int(stored["n"])].astype(bool)
        boxes = stored["boxes"].astype(np.float64)
        return EvaluationData(folder, stored["names"].tolist(), stored["offsets"], boxes, ~absent)


@pytest.fixture(scope="session")
def config() -> Config:
    return load_config("demo", overrides=[("DATA.TRAIN.DATASETS_NAME", "LASOT")])


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LaSOT's layout with drawn videos: two classes, 2 test and 2 training sequences each."""
    folder = tmp_path_factory.mktemp("data") / "lasot"
    draw_demo(folder, plan=Plan(train_sequences=2, train_frames=25, test_sequences=2, test_frames=14))
    return folder


@pytest.fixture(scope="session")
def sequences(data_dir: Path) -> list[Sequence]:
    return open_lasot(data_dir, classes=(), split="test")


@pytest.fixture(scope="session")
def training_sequences(data_dir: Path) -> list[Sequence]:
    return open_lasot(data_dir, classes=(), split="train")


@pytest.fixture
def model(config: Config) -> SeqTrack:
    return build_model(model_spec(config), seed=11)


@pytest.fixture(scope="session")
def three_epochs(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    """An output folder whose phase 1 has checkpoints of three epochs with different weights. Not to be changed."""
    output = tmp_path_factory.mktemp("run") / "output"
    (output / "phase_1").mkdir(parents=True)
    (output / "phase_1" / "config.yaml").write_text(dump_config(config))
    for epoch in (1, 2, 3):
        save_epoch(output, epoch, build_model(model_spec(config), seed=epoch), config)
    return output
