"""The shipped model is what its metadata says."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sparsetvm.examples import EXAMPLES, digits_path, example_path


@pytest.fixture(scope="module")
def model():
    return onnx.load(digits_path())


@pytest.fixture(scope="module")
def metadata(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_every_example_is_there_and_small():
    assert all(example_path(name).stat().st_size < 1_000_000 for name in EXAMPLES)


def test_digits_batch_is_symbolic(model):
    (image,) = model.graph.input
    dims = image.type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["N", 1, 8, 8]


def test_digits_sparsity_is_as_recorded(model, metadata):
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer]
    weights = [w for w in weights if w.ndim > 1]
    share = sum((w == 0).sum() for w in weights) / sum(w.size for w in weights)
    assert share >= 0.90
    assert float(metadata["sparsity"]) == pytest.approx(share, abs=1e-4)


def test_digits_accuracy_on_the_test_split_is_as_recorded(metadata):
    ort = pytest.importorskip("onnxruntime", reason="needs the [test] extra")
    datasets = pytest.importorskip("sklearn.datasets", reason="needs the [test] extra")
    from sklearn.model_selection import train_test_split

    images, labels = datasets.load_digits(return_X_y=True)
    _, test_x, _, test_y = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=int(metadata["seed"])
    )
    session = ort.InferenceSession(str(digits_path()), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": (test_x / 16).astype(np.float32).reshape(-1, 1, 8, 8)})
    accuracy = float((logits.argmax(1) == test_y).mean())
    # One image of the 360 may fall the other way with another build of ONNX Runtime.
    assert accuracy == pytest.approx(float(metadata["test_accuracy_pruned"]), abs=1.5 / len(test_y))
    assert accuracy >= 0.97
    assert float(metadata["test_accuracy_dense"]) - accuracy <= 0.01
