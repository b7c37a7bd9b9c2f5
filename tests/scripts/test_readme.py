"""Every command that the README shows is run by a test, or is here with the reason why not."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = {
    "cp .env.example .env": "its values are checked by tests/config",
    "MEMLOCK=8388608 docker compose up train-phase1": "needs a GPU; the README says so",
    "CUDA=cu128 docker compose build": "another three gigabytes; built by hand, docs/benchmarks.md",
    "docker compose build": "tests/docker/conftest.py builds with `docker build`",
    "sudo chown $USER output data": "the test's folders have their owners from the start",
    "scripts/test.sh": "it runs this test",
    "docker run": "the form, not a command",
}
CONTAINERS, UPLOADING, LOCAL = "docker/test_containers.py", "docker/test_uploading.py", "scripts/test_local.py"
BOTH_PHASES, OTHERS = "test_both_phases_on_a_fresh_clone_end_identical", "test_the_other_services_do_their_work"
RUN_BY = {
    "docker compose up train-phase1": (CONTAINERS, BOTH_PHASES),
    "RESUME_EPOCH=3 docker compose up train-phase2": (CONTAINERS, BOTH_PHASES),
    "docker compose -f compose.yaml -f compose.cpu.yaml": (
        CONTAINERS,
        BOTH_PHASES,
    ),
    "docker compose": (CONTAINERS, BOTH_PHASES),
    "docker compose run --rm verify": (CONTAINERS, BOTH_PHASES),
    "docker compose run --rm verify doctor": (CONTAINERS, OTHERS),
    "docker compose run --rm verify report": (CONTAINERS, OTHERS),
    "docker compose run --rm evaluate": (CONTAINERS, OTHERS),
    "docker compose run --rm prepare-data": (CONTAINERS, OTHERS),
    "docker compose up tensorboard": (CONTAINERS, OTHERS),
    "docker compose up uploader": (UPLOADING, "test_a_hub_that_is_down_stops_nothing_and_gets_everything_later"),
    "docker compose stop": (CONTAINERS, "test_stop_saves_within_the_grace_and_up_goes_on_to_the_same_end"),
    "docker kill": (CONTAINERS, "test_a_killed_container_goes_on_to_the_same_end"),
    "docker compose --project-directory . -f docker/compose.multi.yaml up": (
        CONTAINERS,
        "test_two_containers_are_the_same_run_as_one_of_as_many_ranks",
    ),
    "HF_REPO=me/seqtrack HF_TOKEN_PATH=~/hf_token docker/cloud/run.sh": (
        UPLOADING,
        "test_a_lone_container_uploads_beside_training_and_ends_when_all_is_there",
    ),
    "scripts/local.sh train-phase1": (LOCAL, BOTH_PHASES),
    "RESUME_EPOCH=3 scripts/local.sh train-phase2": (LOCAL, BOTH_PHASES),
    "scripts/local.sh verify": (LOCAL, BOTH_PHASES),
    "scripts/local.sh evaluate": (LOCAL, BOTH_PHASES),
    "scripts/local.sh report": (LOCAL, BOTH_PHASES),
    "scripts/local.sh plan": (LOCAL, BOTH_PHASES),
    "scripts/local.sh upload --once": (LOCAL, BOTH_PHASES),
    "scripts/local.sh doctor": (LOCAL, "clone"),
    "scripts/lock.sh": (LOCAL, "test_the_locks_are_what_lock_sh_makes_of_the_lists"),
}


def commands(text: str) -> set[str]:
    """Indented lines and words in backquotes that start a program."""
    found = re.findall(r"^    (\S.*)$", text, re.MULTILINE) + re.findall(r"`([^`]+)`", text)
    lines = {re.sub(r"\s+", " ", line.split("  #")[0]).strip() for line in found}
    begins = re.compile(r"([A-Z_]+=\S+ )*(docker |docker$|scripts/|docker/cloud/|cp |sudo )")
    return {line for line in lines if begins.match(line)}


def test_every_command_is_run_or_said_not_to_be() -> None:
    shown = commands((ROOT / "README.md").read_text())
    assert len(shown) > 20
    assert shown - set(RUN_BY) - set(NOT_RUN) == set(), "neither run by a test nor explained"
    assert (set(RUN_BY) | set(NOT_RUN)) - shown == set(), "no longer in the README"


def test_the_tests_that_run_them_exist() -> None:
    for file, name in RUN_BY.values():
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}: {name}"


def test_every_link_leads_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
