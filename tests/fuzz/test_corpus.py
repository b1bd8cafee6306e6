"""Every input that is kept, and each target's seeds: what once broke something does not any more."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import CORPUS, TARGETS, kept

KEPT_BYTES_MAX = 16_000
MUTATIONS = 60


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_that_are_kept(name: str) -> None:
    inputs = [*TARGETS[name].seeds, *(data for _, data in kept(name))]
    assert len(inputs) > 3
    for data in inputs:
        TARGETS[name].run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_that_are_changed_a_little(name: str) -> None:
    chance = random.Random(name)
    inputs = [*TARGETS[name].seeds, *(data for _, data in kept(name))]
    for _ in range(MUTATIONS):
        data = bytearray(chance.choice(inputs))
        for _ in range(chance.randrange(4)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            data += chance.choice(inputs)
        TARGETS[name].run(bytes(data))


def test_the_corpus_is_small_and_of_targets_that_there_are() -> None:
    for path in CORPUS.iterdir():
        assert path.stem in TARGETS, path.name
        assert sum(len(data) for _, data in kept(path.stem)) <= KEPT_BYTES_MAX, path.name
