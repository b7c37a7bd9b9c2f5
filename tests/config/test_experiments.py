"""The package's experiments: digests pin every one of them, and the tracker's keys are the published ones."""

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


@pytest.mark.parametrize("name", AUTHORS)
def test_the_trackers_keys_are_the_published_values(name: str) -> None:
    """The digests below do not cover them, and the defaults are those of the authors' code."""
    expected: dict[str, object] = {"TEST.NUM_TEMPLATES": 2, "TEST.WINDOW": True}
    if "384" in name:
        expected |= {"TEST.SEARCH_SIZE": 384, "TEST.TEMPLATE_SIZE": 384}
    if vot := {"seqtrack_b256": (1, 0.55), "seqtrack_b384": (20, 0.45)}.get(name):
        expected |= {f"TEST.UPDATE_INTERVALS.VOT{year}": vot[0] for year in (20, 21, 22)}
        expected |= {f"TEST.UPDATE_THRESHOLD.VOT{year}": vot[1] for year in (20, 21, 22)}
    values = {key: value for key, value in flat_values(load_config(name)).items() if key.startswith("TEST.")}
    assert {key: value for key, value in values.items() if value != KEYS[key].default} == expected
    test = Config().TEST
    intervals = " ".join(map(str, test.UPDATE_INTERVALS.model_dump().values()))
    assert intervals == "9999 450 9999 1 25 25 9999 9999 9999 10 10 10"
    assert list(test.UPDATE_THRESHOLD.model_dump().values()) == [0.6, 0.475, 0.475, 0.475]
    assert (test.WINDOW, test.NUM_TEMPLATES) == (False, 1)


def test_the_authors_yaml_is_loaded_unchanged() -> None:
    # Block lists, integers for floats, and keys that nothing reads (STRIDE, EPOCH).
    text = """
DATA:
  LOADER: tracking
  TEMPLATE: {CENTER_JITTER: 0, NUMBER: 2}
  TRAIN:
    DATASETS_NAME:
    - LASOT
    - GOT10K_vottrain
    DATASETS_RATIO: [1, 1]
MODEL: {ENCODER: {STRIDE: 16, DROP_PATH: 0}}
TRAIN: {FREEZE_ENCODER: False, ENCODER_OPEN: [], SCHEDULER: {TYPE: step, DECAY_RATE: 0.1}}
TEST: {NUM_TEMPLATES: 2, EPOCH: 500, UPDATE_INTERVALS: {VOT20: 1}, UPDATE_THRESHOLD: {VOT20: 0.55}}
"""
    config = config_from_text(text, "theirs.yaml")
    assert config.DATA.TRAIN.DATASETS_NAME == ("LASOT", "GOT10K_vottrain")
    assert (config.TEST.UPDATE_THRESHOLD.VOT20, config.DATA.TEMPLATE.CENTER_JITTER) == (0.55, 0.0)


# Checkpoints contain the digest: if it changed with the code, no run could be resumed after an update.
DIGESTS = {
    "airplane_bicycle_p8": "e27533ff5c319a765160999667560be4358a5c0c248ab8f2564ba9f01fac0db7",
    "airplane_random_5": "82ea163f0d80ae90e1b88383987747967f1355b7d04740e3954f300701517e07",
    "book_coin_192": "a12f49c080e96222a440434a2f29a702fea1ccac53b13bcbdad7a156127c16ba",
    "coin_kite_256": "a8d3097d8cd105dda34c4d08b6f3e167ee04fd1e089616dcfc3fef0056762cc6",
    "demo": "119488aa21ab6bbb420fc1190ebc142d16ac2473221ad005ee142e844ea2af00",
    "nano": "fac045ce78fceac1c1179fab5add7057273d1b7e533a2b142b037e7566b96e1d",
    "nano_start": "427cee225b48c705e3e871aa295e473a3158b1120b6db7e1758559b46acc1190",
    "seqtrack_b256": "2533fd949fa9b6ff52fa4439b9aaade05aebe0f8b53c623200f75745eb999969",
    "seqtrack_b256_got": "4b9dc4dcbb29ffad37d70434e4eb4cf65f0fec6a371c591ea31021b08e1eb521",
    "seqtrack_b384": "7bfdf276c34a87b42ecb56fc60be3cfe42952cae712e0b6e266433603a3f76a1",
    "seqtrack_b384_got": "a218f3d9f5e1e60c3799c76643477181a5178d3b5c14692e0f3cd0598261f0e3",
    "seqtrack_l256": "95abfaada42e24ba1fd56321b30e7c6a29199ca6078dd78a73b7a4782a8116ee",
    "seqtrack_l256_got": "316578c95d855026f7ef0646ddf229685bc4b5a643617fedb682b8bc091df333",
    "seqtrack_l384": "a0623fb18c6192a8db373e628da62894260ee13d1202ff01239e6a7e6c6cc39a",
    "seqtrack_l384_got": "3ec32425897b0270d3b18b23dc562b04c6febef51db37dbce51331df88c9c8d1",
    "ten_classes_t4": "e5c850d6d4364d655f9f037a94395a0f9a01a969d6d6fd7610ee4c183ca86801",
}


def test_the_digest_of_an_experiment_does_not_change_with_the_code_or_by_dump_and_load() -> None:
    assert {name: config_digest(load_config(name)) for name in experiment_names()} == DIGESTS
    for name in DIGESTS:
        config = load_config(name)
        again = config_from_text(dump_config(config), "stored")
        assert (again, dump_config(again), config_digest(again)) == (config, dump_config(config), DIGESTS[name])
