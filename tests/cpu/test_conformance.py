"""ONNX's backend tests: a sample of those in scope, those that needed work of ours, and the list of those that fail.

scripts/conformance.py runs all of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from checklib import node_tests
from models import ModelBuilder, mlp, random_inputs, run_onnxruntime

from sparsetvm import onnx_backend
from sparsetvm.core.target import cpu_flags
from sparsetvm.errors import UsageError
from sparsetvm.frontend.names import words

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")
KNOWN = json.loads((Path(node_tests.__file__).parent / "known_failures.json").read_text())
MOST_KNOWN = 20  # lower it when the list gets shorter
EVERY = 50

# One for each thing that TVM's importer lacks, or that it or we did wrong.
MENDED = sorted(
    words(
        """
        and_bcast4v2d attention_23_boolmask_fullymasked_row_nan_robustness
        attention_4d_gqa_causal_nonpad_decode castlike_FLOAT_to_FLOAT16 celu constant
        convtranspose_output_shape dropout_default_mask eyelike_populate_off_main_diagonal
        group_normalization_example isinf_negative l2normalization_axis_1 layer_normalization_3d_axis1_epsilon
        mish mvn onehot_with_negative_axis pow_types_float32_int64 prelu_broadcast
        range_float16_type_positive_delta reduce_max_bool_inputs reduce_sum_empty_set
        resize_downsample_scales_cubic_A_n0p5_exclude_outside resize_downsample_scales_linear
        resize_downsample_sizes_linear_antialias resize_downsample_sizes_nearest_not_larger
        resize_tf_crop_and_resize_axes_3_2 resize_upsample_scales_linear_half_pixel_symmetric
        rms_normalization_3d_axis0_epsilon rotary_embedding_interleaved shape_start_1 size
        spacetodepth_crd_mode_example swiglu_alpha swish tile upsample_nearest
        """
    )
)


@pytest.mark.timeout(600)
def test_a_sample_of_the_node_tests_passes() -> None:
    failed = []
    for at, name in enumerate(sorted(node_tests.node_cases())):
        if at % EVERY == 0 and name not in KNOWN:
            failed += [name for mode in node_tests.MODES if not passes(name, mode)]
    assert failed == []


def passes(name: str, mode: str) -> bool:
    try:
        return node_tests.run_named((name, mode)) in ("passed", "no weights")
    except Exception:  # whatever it is, it did not pass
        return False


@pytest.mark.parametrize("name", MENDED)
def test_what_needed_work_passes(name: str) -> None:
    assert node_tests.run_named((f"test_{name}", "given")) == "passed"


@pytest.mark.parametrize("name", KNOWN)
def test_list_of_failures_only_shrinks(name: str) -> None:
    assert name in node_tests.node_cases(), "no such test: take it off the list"
    assert not passes(name, "given"), "it passes now: take it off the list"


def test_list_of_failures_never_grows_and_gives_reasons() -> None:
    assert len(KNOWN) <= MOST_KNOWN
    assert all(len(reason) > 20 for reason in KNOWN.values())


def test_bounds_of_old_slices_are_attributes() -> None:
    assert node_tests.run_named(("test_operator_index", "given")) == "passed"


def test_model_tests_with_pruned_weights_pass() -> None:
    for name in ("test_Conv2d_groups", "test_Linear"):
        assert node_tests.run_named((name, "constant")) == "passed"


# ---- the backend itself ----


def test_backend_runs_a_model_with_an_open_batch_for_each_size() -> None:
    model = mlp((12, 16, 4), batch="n").model()
    backend = onnx_backend.prepare(model)
    for batch in (1, 3, 1):
        inputs = random_inputs(model, batch=batch)
        (found,) = backend.run(list(inputs.values()))
        np.testing.assert_allclose(found, *run_onnxruntime(model, inputs).values(), rtol=1e-5, atol=1e-6)
    assert len(backend._modules) == 2


def test_backend_runs_a_node_whose_shape_is_an_input() -> None:
    node = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"])
    (found,) = onnx_backend.run_node(node, [np.zeros((2, 6), np.float32), np.array([3, 4])])
    assert found.shape == (3, 4)


def test_backend_names_its_inputs_when_too_few_are_given() -> None:
    builder = ModelBuilder("two")
    builder.op("Add", builder.input("a", (2,)), builder.input("b", (2,)), out="y")
    with pytest.raises(UsageError, match="takes 2 inputs"):
        onnx_backend.prepare(builder.output("y").model()).run([np.zeros(2, np.float32)])
