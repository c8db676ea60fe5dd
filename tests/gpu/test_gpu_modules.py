"""Several modules in one process, and modules shared by threads."""

from __future__ import annotations

import threading

import pytest
from gpu_tools import Compiled, compiled, needs_gpu
from models import conv_net, mlp, random_inputs, relative_error, run_onnxruntime

import sparsetvm
from sparsetvm.runtime.module import Module

pytestmark = needs_gpu


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Compiled:
    return compiled(conv_net(batch=2, size=20, width=32), tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Compiled:
    return compiled(mlp((64, 128, 96, 10), batch=9), tmp_path_factory.mktemp("tokens"))


def test_two_modules_at_once_keep_apart(images: Compiled, tokens: Compiled) -> None:
    with sparsetvm.load(images.path) as first, sparsetvm.load(tokens.path) as second:
        for _ in range(3):
            images.check(first.run(images.inputs))
            tokens.check(second.run(tokens.inputs))


def test_one_library_loaded_twice_keeps_apart(tokens: Compiled) -> None:
    builder = mlp((64, 128, 96, 10), batch=9)
    other = random_inputs(builder.model(), 5)
    expected = run_onnxruntime(builder.model(), other)
    with sparsetvm.load(tokens.path) as first, sparsetvm.load(tokens.path) as second:
        for _ in range(3):
            tokens.check(first.run(tokens.inputs))
            assert relative_error(second.run(other)["logits"], expected["logits"]) < 1e-5


def test_threads_share_a_module_while_others_load_and_capture_theirs(images: Compiled, tokens: Compiled) -> None:
    problems: list[BaseException] = []

    def work(shared: Module) -> None:
        try:
            for _ in range(3):
                with sparsetvm.load(tokens.path) as own:
                    for _ in range(4):
                        tokens.check(own.run(tokens.inputs))
                        images.check(shared.run(images.inputs))
        except BaseException as problem:
            problems.append(problem)

    with sparsetvm.load(images.path) as shared:
        threads = [threading.Thread(target=work, args=(shared,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
