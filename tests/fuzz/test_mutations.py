"""The damaging itself: repeatable, and it does change its input."""

import json
import random

from fuzz.mutations import cases, mutate, mutate_json

DOCUMENT = json.dumps({"a": 1, "b": [1.5, {"c": "x"}], "d": None}).encode()


def test_the_same_seed_gives_the_same_inputs_and_another_seed_others() -> None:
    assert list(cases([DOCUMENT], 50, seed=3)) == list(cases([DOCUMENT], 50, seed=3))
    assert list(cases([DOCUMENT], 50, seed=3)) != list(cases([DOCUMENT], 50, seed=4))


def test_most_results_differ_from_the_input_and_from_each_other() -> None:
    results = [mutate(DOCUMENT, random.Random(number)) for number in range(200)]
    assert sum(result != DOCUMENT for result in results) > 180
    assert len(set(results)) > 150


def test_json_stays_json() -> None:
    for number in range(200):
        json.loads(mutate_json(DOCUMENT, random.Random(number)))


def test_no_input_is_too_short_to_be_damaged() -> None:
    for number in range(200):
        mutate(b"", random.Random(number), other=b"x")
        mutate(b"x", random.Random(number), other=b"")
        mutate_json(b"[]", random.Random(number))
