"""Tables of benchmark results in Markdown, put between the markers of a document:

<!-- begin anchors -->
(replaced)
<!-- end anchors -->
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchlib.summary import by_group, geomean
from sparsetvm.errors import UsageError

LABELS = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-f32": "OpenVINO f32",
    "deepsparse": "DeepSparse",
    "dense": "ours, dense",
    "numpy": "OpenBLAS",
    "sparsetvm-dense": "ours, dense",
    "torch-fp32": "PyTorch fp32",
    "torch-tf32": "PyTorch tf32",
    "torch-fp16": "PyTorch fp16",
    "cusparse": "cuSPARSE",
    "torch-2:4": "PyTorch 2:4 fp16",
    "triton-block": "Triton blocks fp16",
    "triton-block-tf32": "Triton blocks tf32",
}
_ON_GPU = ("torch-", "cusparse", "triton-")  # competitors that get a column each: they compute in other precisions
_LIBRARIES = ("numpy", "onnxruntime", "openvino-f32")  # dense float32 products of others
_VERSIONS = ("sparsetvm", "tvm", "numpy", "scipy", "onnxruntime", "openvino", "torch")


def fill_document(path: Path, sections: Mapping[str, str]) -> None:
    """Replace what stands between the markers of each section. Raises UsageError when markers are missing."""
    text = path.read_text(encoding="utf-8")
    for name, content in sections.items():
        pattern = re.compile(rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, body=content: f"{found[1]}{body}\n{found[2]}", text)  # type: ignore[misc]
        if count != 1:
            raise UsageError(
                f"'{path}' has {count} sections '{name}'", hint=f"write <!-- begin {name} --> and <!-- end {name} -->"
            )
    path.write_text(text, encoding="utf-8")


def kernel_sections(result: Mapping[str, Any]) -> dict[str, str]:
    """Suite -> a table with one row per group, and the machine."""
    good = [row for row in result["rows"] if "error" not in row]
    suites = dict.fromkeys(row["suite"] for row in good)
    machine = _machine(result["machine"])
    return {suite: f"{_kernel_table([row for row in good if row['suite'] == suite])}\n\n{machine}" for suite in suites}


def model_sections(result: Mapping[str, Any]) -> dict[str, str]:
    """{"models": a table with one row per network, and the machine}."""
    good = [row for row in result["rows"] if "error" not in row]
    names = list(dict.fromkeys(name for row in good for name in row["baselines_ms"]))
    over = "onnxruntime" if "onnxruntime" in names or not names else names[0]
    lines = []
    for row in good:
        times = [row["baselines_ms"].get(name) for name in names]
        factor = row["speedup"].get(over)
        lines.append([
            row["model"], _ms(row["ours_ms"]), *(_ms(time) for time in times), f"{factor:.1f}x" if factor else "",
        ])  # fmt: skip
    heads = ["network", "sparsetvm", *(LABELS.get(name, name) for name in names), f"over {LABELS.get(over, over)}"]
    return {"models": f"{markdown_table(heads, lines)}\n\n{_machine(result['machine'])}"}


def thread_sections(result: Mapping[str, Any]) -> dict[str, str]:
    """{"threads": a table with one row per network and one column per number of threads}; {} for one number only."""
    good = [row for row in result["rows"] if "error" not in row]
    counts = sorted({row["threads"] for row in good if "threads" in row})
    if len(counts) < 2:
        return {}
    cells: dict[str, dict[int, str]] = defaultdict(dict)
    for row in good:
        factor = row["speedup"].get("onnxruntime")
        cells[row["model"]][row["threads"]] = _ms(row["ours_ms"]) + (f" ({factor:.1f}x)" if factor else "")
    heads = ["network", *(f"{count} thread{'s' if count > 1 else ''}" for count in counts)]
    lines = [[model, *(of.get(count, "") for count in counts)] for model, of in cells.items()]
    return {"threads": f"{markdown_table(heads, lines)}\n\n{_machine({**result['machine'], 'threads': counts[-1]})}"}


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the columns after the first are aligned to the right."""
    rule = ["---", *("--:" for _ in heads[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _library_times(row: Mapping[str, Any]) -> list[float]:
    return [row["baselines_us"][name] for name in _LIBRARIES if name in row["baselines_us"]]


def _kernel_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns that no row has a value for are left out."""
    columns: dict[str, list[str]] = defaultdict(list)
    groups = by_group(rows)
    others = dict.fromkeys(name for row in rows for name in row["baselines_us"] if name.startswith(_ON_GPU))
    for members in groups.values():
        speedups = [row["speedup"] for row in members]
        packed = [row["best_dense_us"] / row["ours_packed_us"] for row in members if row["ours_packed_us"]]
        library = [min(found) / row["ours_us"] for row in members if (found := _library_times(row))]
        random = [row["ratio_to_random"] for row in members if "ratio_to_random" in row]
        best, _ = Counter(row["best_dense"] for row in members).most_common(1)[0]
        columns["cases"].append(str(len(members)))
        columns["speed-up"].append(f"{geomean(speedups):.1f}x")
        columns["lowest"].append(f"{min(speedups):.1f}x")
        columns["with packing"].append(f"{geomean(packed):.1f}x" if packed else "")
        columns["of FMA peak"].append(f"{geomean(row['peak_fraction'] for row in members):.0%}")
        columns["best dense"].append(LABELS.get(best, best))
        columns["over best library"].append(f"{geomean(library):.1f}x" if library else "")
        for name in others:
            over = [row["baselines_us"][name] / row["ours_us"] for row in members if name in row["baselines_us"]]
            columns[f"over {LABELS.get(name, name)}"].append(f"{geomean(over):.1f}x" if over else "")
        columns["time over random"].append(f"{geomean(random):.2f}" if random else "")
    kept = {head: cells for head, cells in columns.items() if any(cells)}
    lines = [[group, *cells] for group, *cells in zip(groups, *kept.values(), strict=True)]
    return markdown_table(["", *kept], lines)


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {machine[name]}" for name in _VERSIONS if name in machine)
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    if str(machine["isa"]).startswith("sm_"):
        return f"{machine['device']}, {machine['isa']}; {versions}."
    peak = f", FMA peak of a core {machine['fma_peak_gflops']:.0f} GFLOP/s" if "fma_peak_gflops" in machine else ""
    return f"{machine['device']}, {machine['isa']}, {threads}{peak}; {versions}."


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
