"""Times of single kernels from the calls of a virtual machine."""

import pytest

from sparsetvm.runtime.per_layer import summarize_calls

LAYER = "sparsetvm_layer_0"
KERNELS = [{"name": name, "op": "conv2d", "symbol": LAYER} for name in "ab"]
RUN = [("vm.builtin.null_value", 1e-6), ("sparsetvm_layer_0", 5e-6), ("fused_add", 3e-6), ("sparsetvm_layer_0", 3e-6)]


def test_calls_get_the_names_of_their_layers_and_lose_the_overhead():
    times = summarize_calls([RUN, RUN], KERNELS)
    assert [(t.name, t.op, t.kernel) for t in times] == [
        ("a", "conv2d", "sparsetvm_layer_0"), ("fused_add", "TVM", "fused_add"), ("b", "conv2d", "sparsetvm_layer_0")
    ]  # fmt: skip
    assert [t.us for t in times] == pytest.approx([4.0, 2.0, 2.0])
    assert [t.share for t in times] == pytest.approx([0.5, 0.25, 0.25])


def test_manifest_that_does_not_fit_gives_symbols():
    assert [t.name for t in summarize_calls([RUN], KERNELS[:1] * 3)] == [t[0] for t in RUN[1:]]


def test_chunks_of_a_batch_are_numbered():
    times = summarize_calls([[*RUN, *RUN]], KERNELS)
    assert [t.name for t in times if t.op == "conv2d"] == ["a (chunk 1)", "b (chunk 1)", "a (chunk 2)", "b (chunk 2)"]


def test_kernels_that_run_again_before_a_gather_are_numbered():
    kernels = [KERNELS[0], KERNELS[0], KERNELS[1]]
    times = summarize_calls([[(LAYER, 1e-6)] * 3], kernels)
    assert [t.name for t in times] == ["a (chunk 1)", "a (chunk 2)", "b"]
