"""The fuzz targets over their corpus and a few mutations of it: what a long run of scripts/fuzz.py starts from."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import fuzz
import onnx
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


def test_mutations_of_texts_that_are_none_raise_nothing() -> None:
    """What the mutator raises ends the fuzzer as if the input before had crashed it."""
    node = onnx.helper.make_node("Clip", ["in"], ["out"])
    graph = onnx.helper.make_graph([node], "g", [onnx.helper.make_tensor_value_info("in", 1, [2])], [])
    whole = onnx.helper.make_model(graph).SerializeToString()
    for text in (b"Clip", b"in", b"out"):
        for seed in range(60):
            targets.mutate_model(whole.replace(text, b"\xff" * len(text)), random.Random(seed))


def _in_the_fuzzer(code: str) -> str:
    """What `code` prints in a process as the fuzzer starts it."""
    environment = {**os.environ, **fuzz.ONE_THREAD, "PYTHONPATH": str(Path(fuzz.__file__).parent)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_libraries_start_no_threads_under_the_memory_limit() -> None:
    """Found on 16 cores: the pools of numpy and scipy took 1.3 GB of addresses, and all inputs "ran out of memory"."""
    code = "import numpy, scipy.linalg, os; print(len(os.listdir('/proc/self/task')))"
    assert int(_in_the_fuzzer(code)) == 1


def test_memory_limit_is_one_input_s_and_not_that_of_all_before_it() -> None:
    """Atheris leaks: a round of a fast machine would end in MemoryErrors of inputs that need a few kilobytes."""
    code = """
import fuzz
import numpy as np
kept = []
for _ in range(4):
    fuzz.limit_memory()
    kept.append(np.empty(700 << 20, np.uint8))
try:
    np.empty(1100 << 20, np.uint8)
except MemoryError:
    print("refused")
"""
    assert _in_the_fuzzer(code) == "refused\n"
