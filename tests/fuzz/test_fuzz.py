"""The fuzz targets over their corpus and a few mutations of it: what a long run of scripts/fuzz.py starts from."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import targets

CORPUS = Path(__file__).parent / "corpus"
MUTATIONS = {"loader": 120, "analysis": 40, "log": 60, "target": 500}


def seeds(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@pytest.mark.parametrize("target", targets.TARGETS)
def test_target_survives_its_corpus_and_mutations_of_it(target):
    rng, known = random.Random(0), seeds(target)
    assert known
    inputs = list(known)
    for _ in range(MUTATIONS[target]):
        data = bytearray(rng.choice(known))
        mutate = targets.MUTATORS.get(target)
        if mutate is not None and rng.random() < 0.7:
            data = bytearray(mutate(bytes(data), rng))
        for _ in range(rng.choice((0, 1, 2))):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        inputs.append(bytes(data))
    for data in inputs:
        targets.TARGETS[target](data)


@pytest.mark.parametrize("target", targets.MUTATORS)
def test_mutations_of_a_format_are_mostly_of_that_format(target):
    """A mutator that breaks everything would fuzz the parser alone."""
    rng = random.Random(1)
    known = seeds(target)
    changed = sum(targets.MUTATORS[target](rng.choice(known), rng) not in known for _ in range(50))
    assert changed > 20
