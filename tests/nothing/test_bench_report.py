"""Summaries, tables and figures of benchmark results."""

from __future__ import annotations

import json
import math

import plot_bench
import pytest
from benchlib.markdown import fill_document, kernel_sections, model_sections, thread_sections
from benchlib.summary import geomean, summarize_kernels, summarize_models

from sparsetvm.errors import UsageError

MACHINE = {"device": "A core", "isa": "avx512", "threads": 1, "fma_peak_gflops": 234.5, "sparsetvm": "1.2"}


def kernel(suite="anchors", group="n=128,s=0.90", ours=10.0, dense=80.0, packed=16.0, **more):
    return {
        "suite": suite, "case": "c", "group": group, "n": 128, "sparsity": 0.9, "pattern": "unstructured",
        "ours_us": ours, "ours_packed_us": packed, "best_dense": "onnxruntime", "best_dense_us": dense,
        "baselines_us": {"onnxruntime": dense}, "speedup": dense / ours, "peak_fraction": 0.5, **more,
    }  # fmt: skip


def model(name="net", ours=2.0, **baselines):
    return {
        "model": name, "ours_ms": ours, "baselines_ms": baselines,
        "speedup": {key: ms / ours for key, ms in baselines.items()},
    }  # fmt: skip


def test_geomean_of_nothing_is_no_number():
    assert geomean([2.0, 8.0]) == pytest.approx(4.0)
    assert math.isnan(geomean([]))


def test_summary_of_kernels_averages_by_group_and_counts_slower_and_failed():
    rows = [
        kernel(),
        kernel(dense=20.0),
        kernel(group="n=1,s=0.90", dense=9.0, packed=None),
        {"suite": "anchors", "case": "broken", "group": "n=1,s=0.90", "error": "..."},
    ]
    summary = summarize_kernels(rows)
    assert summary["geomean_speedup"] == pytest.approx({"n=128,s=0.90": 4.0, "n=1,s=0.90": 0.9})
    assert summary["geomean_speedup_packed"] == pytest.approx({"n=128,s=0.90": 2.5})
    assert "geomean_vs_random" not in summary
    assert (summary["slower_than_dense"], summary["failed"]) == (1, 1)


def test_summary_of_kernels_compares_with_random_patterns_by_file():
    rows = [kernel("dlmc", "file", ratio_to_random=ratio) for ratio in (0.5, 2.0)]
    assert summarize_kernels(rows)["geomean_vs_random"] == pytest.approx({"file": 1.0})


def test_summary_of_models_leaves_out_what_did_not_run():
    rows = [model(onnxruntime=8.0, deepsparse=1.0), model(onnxruntime=2.0), {"model": "m", "error": "..."}]
    summary = summarize_models(rows)
    assert summary["geomean_speedup"] == pytest.approx({"onnxruntime": 2.0, "deepsparse": 0.5})
    assert summary["slower"] == {"onnxruntime": 0, "deepsparse": 1}
    assert summary["failed"] == 1


def test_kernel_table_has_a_row_for_each_group_and_no_empty_columns():
    table = kernel_sections({"machine": MACHINE, "rows": [kernel(), kernel(dense=20.0)]})["anchors"]
    assert "| n=128,s=0.90 | 2 | 4.0x | 2.0x | 2.5x | 50% | ONNX Runtime |" in table
    assert "random" not in table
    assert "peak of a core 234 GFLOP/s" in table
    assert "sparsetvm 1.2" in table


def test_kernel_table_compares_with_the_fastest_library_too():
    times = {"sparsetvm-dense": 40.0, "numpy": 60.0, "onnxruntime": 50.0, "scipy": 1.0}
    table = kernel_sections({"machine": MACHINE, "rows": [kernel(baselines_us=times)]})["anchors"]
    assert table.splitlines()[0].endswith("| best dense | over best library |")
    assert table.splitlines()[2].endswith("| ONNX Runtime | 5.0x |")


def test_kernel_table_of_a_gpu_compares_with_each_precision_and_names_no_core():
    rows = [kernel(baselines_us={"torch-fp32": 40.0, "torch-fp16": 5.0}), kernel(baselines_us={"torch-fp32": 10.0})]
    table = kernel_sections({"machine": {**MACHINE, "isa": "sm_90"}, "rows": rows})["anchors"]
    assert "over PyTorch fp32 | over PyTorch fp16 |" in table
    assert "| ONNX Runtime | 2.0x | 0.5x |" in table
    assert "thread" not in table


def test_model_table_leaves_a_cell_empty_where_a_runtime_did_not_run():
    rows = [model("a", onnxruntime=123.4, deepsparse=12.34), model("b", ours=0.1234, onnxruntime=1.0)]
    table = model_sections({"machine": MACHINE, "rows": rows})["models"]
    assert "| a | 2 | 123 | 12.3 | 61.7x |" in table
    assert "| b | 0.123 | 1 |  | 8.1x |" in table


def test_document_keeps_everything_outside_the_markers(tmp_path):
    document = tmp_path / "d.md"
    document.write_text("before\n<!-- begin x -->\nold\n<!-- end x -->\nafter\n")
    for content in ("new \\1", "newer"):
        fill_document(document, {"x": content})
        assert document.read_text() == f"before\n<!-- begin x -->\n{content}\n<!-- end x -->\nafter\n"


def test_document_without_markers_is_an_error_that_names_them(tmp_path):
    document = tmp_path / "d.md"
    document.write_text("nothing\n")
    with pytest.raises(UsageError, match="begin x"):
        fill_document(document, {"x": "new"})


def test_results_of_one_kind_are_joined_and_others_rejected(tmp_path):
    paths = []
    for name, rows in (("a", [kernel()]), ("b", [kernel("conv")]), ("m", [model(onnxruntime=1.0)])):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({"rows": rows, "machine": MACHINE}))
    kernels, models = plot_bench.read_results(paths)
    assert [row["suite"] for row in kernels["rows"]] == ["anchors", "conv"]
    assert len(models["rows"]) == 1
    (tmp_path / "x.json").write_text('{"layers": []}')
    with pytest.raises(UsageError, match=r"x\.json"):
        plot_bench.read_results([tmp_path / "x.json"])


def test_figures_are_equal_for_equal_results(tmp_path):
    pytest.importorskip("matplotlib")
    from benchlib.figures import draw

    rows = [kernel(), kernel("conv"), kernel("dlmc", "file", ratio_to_random=0.9), kernel("patterns")]
    models = {"rows": [model(onnxruntime=8.0, deepsparse=1.0), model("b", onnxruntime=2.0)]}
    first, again = (draw({"rows": rows}, models, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == ["anchors.svg", "conv.svg", "dlmc.svg", "patterns.svg", "models.svg"]
    assert [path.read_text() for path in first] == [path.read_text() for path in again]


def test_networks_timed_with_several_numbers_of_threads_have_a_column_for_each():
    rows = [{**model("net", ours, onnxruntime=8.0), "threads": threads} for threads, ours in ((1, 4.0), (16, 1.0))]
    table = thread_sections({"rows": rows, "machine": MACHINE})["threads"]
    assert "| network | 1 thread | 16 threads |" in table
    assert "| net | 4 (2.0x) | 1 (8.0x) |" in table
    assert "16 threads" in table.splitlines()[-1]


def test_one_number_of_threads_needs_no_table_of_threads():
    assert thread_sections({"rows": [{**model(onnxruntime=2.0), "threads": 1}], "machine": MACHINE}) == {}


def test_table_of_networks_without_onnxruntime_is_over_the_first_competitor():
    rows = [model("net", 2.0, **{"torch-fp32": 8.0, "torch-fp16": 1.0})]
    table = model_sections({"rows": rows, "machine": MACHINE})["models"]
    assert "over PyTorch fp32 |" in table.splitlines()[0]
    assert "| net | 2 | 8 | 1 | 4.0x |" in table
