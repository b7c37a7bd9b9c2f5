"""Real annotations and boxes of published trackers if available, and a small run with drawn videos."""

from pathlib import Path

import pytest
from runs import save_epoch

from seqtrack.config.loader import dump_config, load_config
from seqtrack.config.schema import Config
from seqtrack.data.demo import Plan, demo_set
from seqtrack.data.lasot import open_lasot
from seqtrack.data.sequence import Sequence
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    """Every test here runs a model."""


@pytest.fixture(scope="session")
def lasot_eval(test_data: Path) -> Path:
    """Annotations of LaSOT's test set, and boxes of published trackers."""
    return test_data / "lasot_eval"


@pytest.fixture(scope="session")
def config() -> Config:
    return load_config("demo", overrides=[("DATA.TRAIN.DATASETS_NAME", "LASOT")])


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LaSOT's layout with drawn videos: two classes, 2 test and 2 training sequences each."""
    folder = tmp_path_factory.mktemp("data") / "lasot"
    demo_set(Plan(train_sequences=2, train_frames=25, test_sequences=2, test_frames=14)).draw_into(folder)
    return folder


@pytest.fixture(scope="session")
def sequences(data_dir: Path) -> list[Sequence]:
    return open_lasot(data_dir, classes=(), split="test")


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
