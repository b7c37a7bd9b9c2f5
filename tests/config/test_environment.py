"""Environment variables: values, all problems at once, and a token that is never shown."""

import os
import re
from pathlib import Path

import pytest

from seqtrack.config.environment import (
    VARIABLES,
    Environment,
    configure,
    load_dotenv_file,
    read_environment,
    read_token,
    read_variable,
    resolve,
)
from seqtrack.errors import Problem, UserError

REPOSITORY = Path(__file__).parents[2]
TOKEN = "hf_NotARealTokenButItLooksLikeOne"


def problems_of(environ: dict[str, str]) -> list[Problem]:
    try:
        configure(environ)
    except UserError as error:
        return error.problems
    return []


def test_by_default_the_demo_is_trained_and_nothing_is_uploaded() -> None:
    environment, config = configure({"PATH": "/bin", "HF_HOME": "/cache"})
    assert environment == Environment(config="demo")
    assert config.DATA.TRAIN.DATASETS_NAME == ("DEMO",)
    assert (environment.hf_repo, environment.upload_target, environment.target, environment.resume_epoch) == (None,) * 4


def test_every_variable_is_read() -> None:
    environ = {
        "PHASE": "2",
        "RESUME_EPOCH": "4",
        "CONFIG": "seqtrack_l256",
        "DATASET": "lasot",
        "CLASSES": "book, coin",
        "DATA_DIR": "/mnt/data",
        "OUTPUT_DIR": "out",
        "SEED": "7",
        "EPOCHS": "6",
        "BATCH_SIZE": "3",
        "OVERRIDES": "TRAIN.LR 2e-4 DATA.MEAN '[0, 0.5, 1]'",
        "DEVICE": "CPU",
        "NPROC": "2",
        "HF_REPO": "me/seqtrack",
        "HF_TOKEN_PATH": "/run/secrets/hf_token",
        "HF_ENDPOINT": "http://127.0.0.1:8080/",
        "HF_PRIVATE": "no",
        "UPLOAD_TARGET": "folder:/mnt/backup",
    }
    environment, config = configure(environ)
    assert environment == Environment(
        phase=2,
        resume_epoch=4,
        config="seqtrack_l256",
        dataset=("lasot",),
        classes=("book", "coin"),
        data_dir=Path("/mnt/data"),
        output_dir=Path("out"),
        seed=7,
        epochs=6,
        batch_size=3,
        overrides=(("TRAIN.LR", "2e-4"), ("DATA.MEAN", "[0, 0.5, 1]")),
        device="cpu",
        nproc=2,
        hf_repo="me/seqtrack",
        hf_token_path=Path("/run/secrets/hf_token"),
        hf_endpoint="http://127.0.0.1:8080",
        hf_private=False,
        upload_target="folder:/mnt/backup",
    )
    assert (config.TRAIN.SEED, config.TRAIN.EPOCH, config.TRAIN.BATCH_SIZE) == (7, 6, 3)
    assert (config.DATA.CLASSES, config.DATA.TRAIN.DATASETS_NAME) == (("book", "coin"), ("LASOT",))
    assert config.DATA.TRAIN.DATASETS_RATIO == (1.0,)
    assert (config.TRAIN.LR, config.DATA.MEAN) == (2e-4, (0.0, 0.5, 1.0))


def test_all_problems_of_environment_and_configuration_are_reported_at_once() -> None:
    environ = {
        "PHASE": "3",
        "SEED": "-1",
        "NPROC": "all",
        "HF_REPO": "seqtrack",
        "SEQTRACK_GOLDEN": "x",
        "OVERRIDES": "LR 1 TRAIN.SEED x",
        "EPOCHS": "5",
    }
    assert [(problem.split(" ")[0].rstrip(":"), problem.code) for problem in problems_of(environ)] == [
        ("PHASE", "variable.invalid_value"),
        ("SEED", "variable.invalid_value"),
        ("NPROC", "variable.invalid_value"),
        ("HF_REPO", "variable.invalid_value"),
        ("SEQTRACK_GOLDEN", "variable.unknown"),
        ("LR", "config.unknown_key"),
        ("TRAIN.SEED", "config.invalid_value"),
    ]


@pytest.mark.parametrize("name", sorted(VARIABLES))
@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_counts_as_not_set(name: str, empty: str) -> None:
    assert read_environment({name: empty}) == read_environment({})


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("PHASE", ["0", "one", "1.0", "12"], ["1", " 2 "]),
        ("RESUME_EPOCH", ["0", "-1", "3.0", "last", "１", "03"], ["1", " 3"]),
        ("EPOCHS", ["0", "ten"], ["1"]),
        ("BATCH_SIZE", ["0", "1e1", "9" * 50], ["1"]),
        ("SEED", ["4294967296", "0x1"], ["0", "4294967295"]),
        ("CLASSES", ["book,,coin", "book,book", "../book", "a b", ","], ["book", "book,coin"]),
        ("DATASET", ["lasot,", "a/b"], ["lasot", "LASOT,GOT10K_vottrain"]),
        ("DEVICE", ["gpu", "cuda:1"], ["cuda", "AUTO"]),
        ("NPROC", ["0", "-2", "two"], ["auto", "8"]),
        (
            "HF_REPO",
            ["a", "a/b/c", "/b", "a/", "a b/c", "a/b.git", "a--b/c", "../c", "a/..", "https://hf/a/b"],
            ["a/b"],
        ),
        (
            "HF_ENDPOINT",
            ["hub.example.com", "ftp://x", "http://", "http://u:p@x", "http://x:0", "http://x y"],
            ["https://x"],
        ),
        ("HF_PRIVATE", ["maybe", "2"], ["true", "0", "Yes"]),
        ("UPLOAD_TARGET", ["/mnt/backup", "folder:", ":x"], ["folder:/mnt/backup"]),
        (
            "OVERRIDES",
            ["TRAIN.LR", "TRAIN.LR=1", "TRAIN.LR '1", "A 1 B"],
            ["TRAIN.LR 1", "TRAIN.LR '1'"],
        ),
        ("CONFIG", ["a\nb"], ["demo"]),
        ("HF_TOKEN", ["two words", "naïve"], [TOKEN]),
    ],
)
def test_malformed_values_are_refused_and_valid_ones_are_not(name: str, bad: list[str], good: list[str]) -> None:
    for value in bad:
        with pytest.raises(UserError) as caught:
            read_environment({name: value})
        assert [problem.code for problem in caught.value.problems] == ["variable.invalid_value"]
    for value in good:
        read_environment({name: value})


def test_numbers_and_addresses_are_read() -> None:
    assert read_environment({"NPROC": "AUTO"}).nproc == "auto"
    assert read_environment({"RENDEZVOUS": "node-1:29500"}).rendezvous == "node-1:29500"
    assert read_environment({"HEALTH_STALE_S": "2.5"}).health_stale_s == 2.5
    for text in ("node", ":1", "node:0", "node:65536", "node:x", "node:"):
        with pytest.raises(UserError):
            read_environment({"RENDEZVOUS": text})
    for text in ("0.5", "-1", "nan", "x", "1e8", "1_0"):
        with pytest.raises(UserError):
            read_environment({"HEALTH_STALE_S": text})


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read_environment({"HF_TOKEN_PATH": "~/token"}).hf_token_path == Path("/home/me/token")
    with pytest.raises(UserError):
        read_environment({"DATA_DIR": "~nobody-by-this-name/x"})


def test_an_unknown_seqtrack_variable_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        read_environment({"SEQTRACK_TEST_DATE": "x"})
    assert (caught.value.code, caught.value.problems[0].endswith("SEQTRACK_TEST_DATA?")) == ("variable.unknown", True)
    read_environment({"SEQTRACK_TEST_DATA": "x", "SEQTRACKER": "x", "TORCH_HOME": "x"})


def test_phase_2_resumes_after_epoch_3_by_default() -> None:
    assert read_environment({"PHASE": "2"}).resume_epoch == 3
    assert read_environment({"PHASE": "2", "RESUME_EPOCH": "5"}).resume_epoch == 5
    assert read_environment({"PHASE": "1"}).resume_epoch is None
    assert read_environment({"PHASE": "1", "RESUME_EPOCH": "5"}).resume_epoch == 5


def test_a_resume_with_nothing_left_to_train_is_refused() -> None:
    assert problems_of({"RESUME_EPOCH": "9"}) == []
    for environ in (
        {"RESUME_EPOCH": "10"},
        {"PHASE": "2", "EPOCHS": "2"},
        {"EPOCHS": "1", "RESUME_EPOCH": "1"},
    ):
        assert [problem.code for problem in problems_of(environ)] == ["config.resume_epoch"]
    with pytest.raises(UserError):
        resolve(read_environment({"RESUME_EPOCH": "10"}))


def test_the_experiment_follows_the_data_set_unless_it_is_named() -> None:
    assert read_environment({"DATASET": "demo"}).config == "demo"
    assert read_environment({"DATASET": "DEMO"}).config == "demo"
    assert read_environment({"DATASET": "lasot"}).config == "seqtrack_b256"
    assert read_environment({"DATASET": "lasot", "CONFIG": "demo"}).config == "demo"


def test_an_unset_dataset_does_not_override_the_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("DATA: {TRAIN: {DATASETS_NAME: [LASOT, COCO17], DATASETS_RATIO: [3, 1]}}")
    assert configure({"CONFIG": str(path)})[1].DATA.TRAIN.DATASETS_RATIO == (3.0, 1.0)
    assert configure({"CONFIG": str(path), "DATASET": "demo"})[1].DATA.TRAIN.DATASETS_NAME == ("DEMO",)
    assert configure({"CONFIG": "seqtrack_b256"})[1].DATA.TRAIN.DATASETS_NAME == ("DEMO",)


def test_data_set_names_keep_their_capitals_and_have_equal_weights() -> None:
    config = configure({"DATASET": "lasot,GOT10K_vottrain"})[1]
    assert config.DATA.TRAIN.DATASETS_NAME == ("LASOT", "GOT10K_vottrain")
    assert config.DATA.TRAIN.DATASETS_RATIO == (1.0, 1.0)


def test_an_unknown_data_set_is_refused() -> None:
    known = ("LASOT", "DEMO", "GOT10K_vottrain")
    with pytest.raises(UserError) as caught:
        read_environment({"DATASET": "lassot,demo"}, known_datasets=known)
    assert (caught.value.code, caught.value.problems[0].endswith("LASOT?")) == ("variable.unknown_dataset", True)
    good = read_environment({"DATASET": "lasot,got10k_vottrain"}, known_datasets=known)
    assert good.dataset == ("lasot", "got10k_vottrain")


def test_overrides_take_precedence() -> None:
    environment = read_environment({"SEED": "1", "OVERRIDES": "TRAIN.SEED 2"})
    assert resolve(environment).TRAIN.SEED == 2


def test_an_unknown_experiment_is_refused() -> None:
    assert problems_of({"CONFIG": "seqtrack-b384"})[0].code == "config.unknown_experiment"


def test_the_token_is_in_no_message() -> None:
    environment, config = configure({"HF_TOKEN": TOKEN, "HF_REPO": "me/x"})
    assert TOKEN not in repr(environment) + str(environment) + repr(config)
    broken = problems_of({"HF_TOKEN": f"{TOKEN} {TOKEN}"})
    assert len(broken) == 1
    assert TOKEN not in broken[0]
    with_credentials = problems_of({"HF_ENDPOINT": f"https://user:{TOKEN}@host"})
    assert TOKEN not in with_credentials[0]


def test_the_token_file_takes_precedence_and_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("hf_first\n")
    environ = {"HF_TOKEN_PATH": str(path), "HF_TOKEN": "hf_other"}
    assert read_token(environ) == "hf_first"
    path.write_text("hf_second")
    assert read_token(environ) == "hf_second"
    assert read_token({"HF_TOKEN": "hf_other", "HF_TOKEN_PATH": ""}) == "hf_other"
    assert read_token({}) is None


@pytest.mark.parametrize(
    "content", [b"", b"\n", f"{TOKEN}\n{TOKEN}".encode(), f"TOKEN={TOKEN} x".encode(), b"\xff\xfe"]
)
def test_a_token_file_without_a_token_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_token({"HF_TOKEN_PATH": str(path)})
    assert (caught.value.code, TOKEN in str(caught.value)) == ("token.malformed", False)
    with pytest.raises(UserError) as caught:
        read_token({"HF_TOKEN_PATH": str(tmp_path / "nothing")})
    assert caught.value.code == "token.unreadable"


def test_a_single_variable_can_be_read() -> None:
    assert read_variable({}, "DEVICE") == "auto"
    assert read_variable({"HF_PRIVATE": "off"}, "HF_PRIVATE") is False
    assert read_variable({}, "HF_REPO") is None
    with pytest.raises(UserError):
        read_variable({"HF_REPO": "x"}, "HF_REPO")


def test_dotenv_sets_only_what_is_not_set(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# mine\nSEED=7\nexport EPOCHS=4\nCLASSES='book,coin'  # two\nHF_REPO=\n")
    environ = {"SEED": "1"}
    assert load_dotenv_file(tmp_path, environ) == tmp_path / ".env"
    assert environ == {"SEED": "1", "EPOCHS": "4", "CLASSES": "book,coin", "HF_REPO": ""}
    assert configure({**environ, "CLASSES": ""})[0].seed == 1


def test_an_invalid_dotenv_file_is_refused(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    assert load_dotenv_file(tmp_path, environ) is None
    (tmp_path / ".env").write_text(f"SEED=7\nHF_TOKEN='{TOKEN}\n")
    with pytest.raises(UserError) as caught:
        load_dotenv_file(tmp_path, environ)
    assert (environ, caught.value.code, TOKEN in str(caught.value)) == ({}, "dotenv.malformed", False)
    (tmp_path / ".env").write_bytes(b"SEED=\xff\n")
    with pytest.raises(UserError) as caught:
        load_dotenv_file(tmp_path, environ)
    assert caught.value.code == "dotenv.unreadable"


def test_dotenv_sets_the_process_environment_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHS", "2")
    (tmp_path / ".env").write_text("EPOCHS=4\n")
    load_dotenv_file(tmp_path)
    assert os.environ["EPOCHS"] == "2"


def test_the_example_file_is_a_valid_configuration(tmp_path: Path) -> None:
    text = (REPOSITORY / ".env.example").read_text()
    (tmp_path / ".env").write_text(text)
    environ: dict[str, str] = {}
    load_dotenv_file(tmp_path, environ)
    environment, config = configure(environ)
    assert (environment.dataset, environment.epochs, environment.hf_repo) == (("lasot",), 10, None)
    assert config.DATA.TRAIN.DATASETS_NAME == ("LASOT",)
    assert config.DATA.CLASSES == ("book", "coin")
    assert re.search(r"hf_[A-Za-z0-9]{8}", text) is None


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("OUTPUT_DIR", "d\udcc3\udcbc/o", "LC_ALL=C.UTF-8"),
        ("DATA_DIR", "\udcff", "LC_ALL=C.UTF-8"),
        ("OUTPUT_DIR", "two\nlines", "U+000A"),
        ("CONFIG", "a\u200bb", "U+200B"),
    ],
)
def test_an_invalid_character_is_named(name: str, value: str, named: str) -> None:
    (problem,) = [one for one in problems_of({name: value}) if one.startswith(name)]
    assert named in problem and problem.isprintable()
