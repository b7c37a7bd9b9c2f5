"""The package's experiments: the authors' published values, and digests that pin every one of them."""

import logging

import pytest

from seqtrack.config.loader import (
    config_digest,
    config_from_text,
    dump_config,
    experiment_names,
    flat_values,
    load_config,
)
from seqtrack.config.schema import KEYS, Config

AUTHORS = [f"seqtrack_{size}{variant}" for size in ("b256", "b384", "l256", "l384") for variant in ("", "_got")]
STUDIES = ["airplane_bicycle_p8", "airplane_random_5", "book_coin_192", "coin_kite_256"]


def changed(name: str) -> dict[str, object]:
    """The keys of an experiment that differ from the default."""
    values = flat_values(load_config(name))
    return {key: value for key, value in values.items() if value != KEYS[key].default}


def test_the_experiments_of_the_package() -> None:
    assert experiment_names() == sorted([*AUTHORS, *STUDIES, "demo"])


@pytest.mark.parametrize("name", [*AUTHORS, *STUDIES, "demo"])
def test_an_experiment_is_unchanged_by_dump_and_load(name: str) -> None:
    config = load_config(name)
    assert config_from_text(dump_config(config), "stored") == config
    assert dump_config(config_from_text(dump_config(config), "stored")) == dump_config(config)


@pytest.mark.parametrize("name", [*AUTHORS, "airplane_bicycle_p8", "airplane_random_5", "coin_kite_256", "demo"])
def test_an_experiment_logs_no_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_config(name)
    assert caplog.messages == []


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_experiments_have_the_published_values(name: str) -> None:
    size, got = name.split("_")[1], name.endswith("_got")
    expected: dict[str, object] = {
        "MODEL.DECODER.DEC_LAYERS": 2,
        "DATA.MAX_SAMPLE_INTERVAL": 400,
        "DATA.TEMPLATE.NUMBER": 2,
        "TEST.NUM_TEMPLATES": 2,
        "TEST.WINDOW": True,
    }
    if got:
        expected["DATA.TRAIN.DATASETS_NAME"] = ("GOT10K_train_full",)
        expected["DATA.TRAIN.DATASETS_RATIO"] = (1.0,)
        expected["DATA.TRAIN.SAMPLE_PER_EPOCH"] = 30000
    else:
        expected["DATA.TRAIN.DATASETS_NAME"] = ("LASOT", "GOT10K_vottrain", "COCO17", "TRACKINGNET")
        expected["DATA.TRAIN.DATASETS_RATIO"] = (1.0, 1.0, 1.0, 1.0)
    if size.startswith("l"):
        expected["MODEL.ENCODER.TYPE"] = "vit_large_patch16"
    if size.endswith("384"):
        sizes = ("DATA.SEARCH.SIZE", "DATA.TEMPLATE.SIZE", "TEST.SEARCH_SIZE", "TEST.TEMPLATE_SIZE")
        expected |= dict.fromkeys(sizes, 384)
    if name == "seqtrack_b256":
        expected["TRAIN.BATCH_SIZE"] = 16
    vot = {"seqtrack_b256": (1, 0.55), "seqtrack_b384": (20, 0.45)}.get(name)
    for year in (20, 21, 22) if vot else ():
        assert vot is not None
        expected[f"TEST.UPDATE_INTERVALS.VOT{year}"] = vot[0]
        expected[f"TEST.UPDATE_THRESHOLD.VOT{year}"] = vot[1]
    assert changed(name) == expected


def test_the_defaults_are_those_of_the_authors_code() -> None:
    config = Config()
    assert (config.TRAIN.LR, config.TRAIN.WEIGHT_DECAY, config.TRAIN.ENCODER_MULTIPLIER) == (1e-4, 1e-4, 0.1)
    assert (config.TRAIN.EPOCH, config.TRAIN.LR_DROP_EPOCH, config.TRAIN.GRAD_CLIP_NORM) == (500, 400, 0.1)
    assert (config.TRAIN.BATCH_SIZE, config.MODEL.DECODER.DEC_LAYERS, config.DATA.TEMPLATE.NUMBER) == (8, 6, 1)
    assert (config.DATA.MAX_SAMPLE_INTERVAL, config.TEST.WINDOW, config.TEST.NUM_TEMPLATES) == (200, False, 1)
    intervals = config.TEST.UPDATE_INTERVALS
    assert (intervals.DEFAULT, intervals.LASOT, intervals.GOT10K_TEST, intervals.VOT20) == (9999, 450, 1, 10)
    assert (intervals.TRACKINGNET, intervals.TNL2K, intervals.OTB) == (25, 25, 9999)
    assert (config.TEST.UPDATE_THRESHOLD.DEFAULT, config.TEST.UPDATE_THRESHOLD.VOT22) == (0.6, 0.475)


def test_the_authors_yaml_is_loaded_unchanged() -> None:
    # Block lists, integers for floats, and a key that nothing reads (STRIDE).
    text = """
DATA:
  MEAN:
  - 0.485
  - 0.456
  - 0.406
  LOADER: tracking
  SAMPLER_MODE: order
  TEMPLATE:
    CENTER_JITTER: 0
    NUMBER: 2
  TRAIN:
    DATASETS_NAME:
    - LASOT
    - GOT10K_vottrain
    DATASETS_RATIO:
    - 1
    - 1
MODEL:
  ENCODER:
    STRIDE: 16
    DROP_PATH: 0
TRAIN:
  FREEZE_ENCODER: False
  ENCODER_OPEN: []
  SCHEDULER:
    TYPE: step
    DECAY_RATE: 0.1
TEST:
  NUM_TEMPLATES: 2
  UPDATE_INTERVALS:
    GOT10K_TEST: 1
    VOT20: 1
  UPDATE_THRESHOLD:
    VOT20: 0.55
"""
    config = config_from_text(text, "theirs.yaml")
    assert config.DATA.TRAIN.DATASETS_NAME == ("LASOT", "GOT10K_vottrain")
    assert config.TEST.UPDATE_THRESHOLD.VOT20 == 0.55
    assert config.DATA.TEMPLATE.CENTER_JITTER == 0.0


# Checkpoints contain the digest: if it changed with the code, no run could be resumed after an update.
DIGESTS = {
    "airplane_bicycle_p8": "0c503f088aa680b8a7598673748137eb4d73a7baa4fde4b88930928e818daeee",
    "airplane_random_5": "ff2e9459bdd02f56588e534e73dcc1f7129d3e2b35bf0afe0968e0f19333be09",
    "book_coin_192": "5e2fb98ce9487722bacd4395fe6f9e8e56747306cc7864b7060166748a2ce974",
    "coin_kite_256": "eb30617219e916779a4316538c7820dddd429002ce0ee70a9f7ea4d3ecfe75c9",
    "demo": "6487102af9efe049d753a7c033d82238b4fc8d5c3e0e4da6fcc8db408c1f1ab8",
    "seqtrack_b256": "f102cd7469fa161575cee06598b29a017918d809e2dd3b8abf5802c0e699358f",
    "seqtrack_b256_got": "fd4bf037ecc310a90b742dd0315e61795d351beeee86f992a3e13ef3ed9a45be",
    "seqtrack_b384": "23f7191224ba1e610f7c411c70a76994399e0ba59fb48fda51d4cf405a087879",
    "seqtrack_b384_got": "4dd9a488d9177b3dbf4921711c1e7734cbafd03aa2dbd25716b61defdd85b781",
    "seqtrack_l256": "deeb4abb5a634a084198ab111e91532516ad08e0ab173c9d2f3bc456677274d7",
    "seqtrack_l256_got": "97a70ece62dcabcd7aaa6a23362cc8b9039d75d0f053386914f83bc9eeafb725",
    "seqtrack_l384": "b0550e8ff8781925ce7bd14a79780b7339439e9add208658ca26c10dbbf18c8f",
    "seqtrack_l384_got": "645d521ef68256a40bdff7e79b1eaa5e916f2bc648766854f4031f88e934fcde",
}


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_the_digest_of_an_experiment_does_not_change(name: str) -> None:
    assert sorted(DIGESTS) == experiment_names()
    assert config_digest(load_config(name)) == DIGESTS[name]
