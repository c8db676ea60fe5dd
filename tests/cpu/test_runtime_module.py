"""A loaded module, on a library that TVM builds here from three lines of Relax."""

import json
import os
import threading

import numpy as np
import pytest

from sparsetvm.core.manifest import manifest_path, sha256_of
from sparsetvm.core.thread_pool import SPIN_VARIABLE, SPINS
from sparsetvm.errors import ModelError, UsageError
from sparsetvm.runtime import threads
from sparsetvm.runtime.module import Module
from sparsetvm.runtime.threads import set_threads

X, Y = {"name": "x", "shape": [4, 16], "dtype": "float32"}, {"name": "y:0", "shape": [4, 16], "dtype": "float32"}
SUM, PRODUCT = (
    {"name": "sum", "shape": [4, 16], "dtype": "float32"},
    {"name": "p", "shape": [4, 16], "dtype": "float32"},
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    import tvm
    from tvm import relax

    x, y = (relax.Var(name, relax.TensorType((4, 16), "float32")) for name in ("x", "y"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, y]):
        with builder.dataflow():
            out = builder.emit_output(relax.Tuple([relax.op.add(x, y), relax.op.multiply(x, y)]))
        builder.emit_func_output(out)
    path = tmp_path_factory.mktemp("module") / "m.so"
    target = tvm.target.Target({"kind": "llvm"})
    relax.build(builder.get(), target=target, relax_pipeline=relax.get_default_pipeline(target)).export_library(
        str(path)
    )
    return path


@pytest.fixture
def module(library):
    manifest = {"schema": 1, "library_sha256": sha256_of(library), "threads": 1}
    manifest_path(library).write_text(json.dumps({**manifest, "inputs": [X, Y], "outputs": [SUM, PRODUCT]}))
    with Module(library) as loaded:
        yield loaded
    manifest_path(library).unlink()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((4, 16)).astype(np.float32) for name in ("x", "y:0")}


def test_run_takes_and_gives_named_arrays(module, arrays):
    out = module.run(arrays)
    assert list(out) == ["sum", "p"]
    np.testing.assert_allclose(out["sum"], arrays["x"] + arrays["y:0"], rtol=1e-6)
    np.testing.assert_allclose(out["p"], arrays["x"] * arrays["y:0"], rtol=1e-6)


def test_results_survive_later_runs(module, arrays):
    first, _ = module(arrays["x"], arrays["y:0"])
    kept = first.copy()
    module(arrays["x"] * 2, arrays["y:0"])
    np.testing.assert_array_equal(first, kept)
    first[:] = 0


def test_strided_and_unaligned_inputs_are_copied_right(module, arrays):
    wide = np.repeat(arrays["x"], 2, axis=1)[:, ::2]
    raw = np.empty(4 * 16 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(4, 16)
    raw[:] = arrays["y:0"]
    np.testing.assert_allclose(module(wide, raw)[0], arrays["x"] + arrays["y:0"], rtol=1e-6)


def test_dlpack_inputs_are_taken(module, arrays):
    import tvm

    total, _ = module(tvm.runtime.tensor(arrays["x"]), arrays["y:0"])
    np.testing.assert_allclose(total, arrays["x"] + arrays["y:0"], rtol=1e-6)


class Foreign:
    """A tensor of another library, as DLPack shows it. device: type and number; 1 is the CPU, 2 an NVIDIA GPU."""

    def __init__(self, array, device=(1, 0)):
        self._array, self._device = array, device

    def __dlpack_device__(self):
        return self._device

    def __dlpack__(self, **options):
        if self._device[0] != 1:
            raise BufferError("the tensor is not on the CPU")
        return self._array.__dlpack__(**options)


def test_tensors_of_any_library_are_taken_and_results_given_back_to_it(module, arrays):
    total, _ = module(Foreign(arrays["x"]), Foreign(arrays["y:0"]))
    np.testing.assert_allclose(total, arrays["x"] + arrays["y:0"], rtol=1e-6)
    assert total.__dlpack_device__() == (1, 0)  # on the device where they came from


def test_torch_tensors_are_taken_and_made_of_results_without_a_copy(module, arrays):
    torch = pytest.importorskip("torch", reason="needs torch")
    total, _ = module(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y:0"]).t().contiguous().t())
    back = torch.from_dlpack(total)
    back[0, 0] = 7.0
    assert total[0, 0] == 7.0


def test_tensor_on_a_gpu_says_that_this_model_wants_it_on_the_cpu(module, arrays):
    with pytest.raises(UsageError, match="input 'x': this array cannot be read on the CPU") as caught:
        module(Foreign(arrays["x"], (2, 0)), arrays["y:0"])
    assert "move it to the CPU" in str(caught.value.hint)


def test_with_closes(library, arrays):
    with Module(library) as loaded:
        loaded(arrays["x"], arrays["y:0"])
    with pytest.raises(UsageError, match="closed"):
        loaded(arrays["x"], arrays["y:0"])


def test_wrong_shape_names_input_expected_and_given(module, arrays):
    with pytest.raises(UsageError, match=r"input 'x': expected shape 4x16, given 3x16"):
        module(arrays["x"][:3], arrays["y:0"])


def test_wrong_dtype_names_input_expected_and_given(module, arrays):
    with pytest.raises(UsageError, match=r"input 'y:0': expected float32, given float64"):
        module(arrays["x"], arrays["y:0"].astype(np.float64))


def test_wrong_names_and_counts_are_usage_errors(module, arrays):
    with pytest.raises(UsageError, match=r"no input 'x1' \(did you mean 'x'\?\)"):
        module.run({"x1": arrays["x"], "y:0": arrays["y:0"]})
    with pytest.raises(UsageError, match="input 'y:0' is missing"):
        module.run({"x": arrays["x"]})
    with pytest.raises(UsageError, match="takes 2 inputs, 1 were given"):
        module(arrays["x"])


def test_one_module_may_be_shared_by_threads(module, arrays):
    wrong = []

    def work(scale):
        for _ in range(50):
            total, _ = module(arrays["x"] * scale, arrays["y:0"])
            if not np.allclose(total, arrays["x"] * scale + arrays["y:0"], rtol=1e-5, atol=1e-6):
                wrong.append(scale)

    workers = [threading.Thread(target=work, args=(np.float32(scale),)) for scale in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_benchmark_gives_ordered_percentiles(module):
    latency = module.benchmark(seconds=0.01, repeats=5)
    assert latency.repeats >= 5
    assert 0 < latency.min <= latency.median <= latency.p90 <= latency.p99


def test_closed_module_says_so(module, arrays):
    module.close()
    with pytest.raises(UsageError, match="closed"):
        module(arrays["x"], arrays["y:0"])


def test_library_without_manifest_has_generic_names_and_a_note(library, arrays):
    loaded = Module(library)
    assert [info.name for info in loaded.inputs] == ["input_0", "input_1"]
    assert "no manifest" in loaded.notes[0]
    out = loaded.run({"input_0": arrays["x"], "input_1": arrays["y:0"]})
    np.testing.assert_allclose(out["output_0"], arrays["x"] + arrays["y:0"], rtol=1e-6)
    with pytest.raises(UsageError, match="pass inputs"):
        loaded.benchmark()


def test_manifest_of_another_signature_is_refused(library):
    manifest = {"schema": 1, "library_sha256": sha256_of(library), "inputs": [X], "outputs": [SUM]}
    manifest_path(library).write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="takes 2 inputs, its manifest names 1"):
        Module(library)
    manifest_path(library).unlink()


def test_file_that_is_no_library_is_a_model_error(tmp_path):
    (tmp_path / "m.so").write_bytes(b"no library")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Module(tmp_path / "m.so")


def test_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="is no file"):
        Module(tmp_path / "m.so")


@pytest.mark.parametrize(("given", "used"), [(None, SPINS), ("77", "77")])
def test_set_threads_lets_idle_workers_sleep_early_unless_the_user_says_otherwise(monkeypatch, given, used):
    monkeypatch.setattr(os, "environ", {SPIN_VARIABLE: given} if given else {})
    monkeypatch.setattr(threads, "_configured", threading.local())
    set_threads(1)
    assert os.environ[SPIN_VARIABLE] == used


def test_set_threads_binds_the_calling_thread_to_no_core():
    before = os.sched_getaffinity(0)
    assert set_threads(1) == 1
    assert os.sched_getaffinity(0) == before


def test_results_speak_dlpack_without_a_copy(module, arrays):
    result = module.run(arrays)["sum"]
    assert np.shares_memory(np.from_dlpack(result), result)


def test_modules_run_beside_each_other(library, module, arrays):
    """One module per thread, each thread with a pool of its own."""
    wrong = []

    def work(loaded, scale):
        given = {name: scale * array for name, array in arrays.items()}
        for _ in range(100):
            out = loaded.run(given)["sum"]
            if not np.allclose(out, scale * (arrays["x"] + arrays["y:0"]), rtol=1e-5, atol=1e-6):
                wrong.append(scale)

    with Module(library) as second:
        threads = [threading.Thread(target=work, args=(m, s)) for m, s in ((module, 1), (second, 2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
