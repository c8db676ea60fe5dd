"""The suites of bench_kernels: which layers are timed.

anchors   products of five shapes, N = 1, 16, 128 and 784, random patterns of 80 to 98 %, and 4x1 blocks
conv      convolutions of ResNet-50 and MobileNetV1
patterns  N = 128: random, blocks, 2:4, 1:4, uneven rows; on a GPU one shape, large blocks too, N = 128 and 1024
grid      square products, 512 to 4096, N = 1 to 1024, random patterns of 90 and 95 % (what GPU papers quote)
sparsert  the cases of SparseRT (Wang, PACT 2020): 1x1 layers of MobileNetV1, two products, 3x3 layers of ResNet-50
structured  on a GPU, in float16: square products with blocks, vectors and 2:4 that tensor cores take, N = 16 to 1024
dlmc      every matrix in the files of a folder, each beside a random pattern of its shape and density
FILE.npz  the same for one file
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchlib.case import Case, conv_task, even_sample, half_task, matmul_task
from benchlib.conv_suite import convolutions
from benchlib.pattern_file import Pattern, read_columns, read_patterns
from sparsetvm.analysis.magnitude import prune_weight
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.errors import UsageError, did_you_mean
from sparsetvm.rewrite.prepare import prepare

SUITES = ("anchors", "conv", "dlmc", "grid", "patterns", "sparsert", "structured")
_SHAPES = ((512, 512), (1024, 1024), (2048, 512), (768, 3072), (3072, 768))
_FEW, _MANY = (0.90, 0.95), (0.80, 0.90, 0.95, 0.98)
_SPARSITIES = {1: _FEW, 16: _FEW, 128: _MANY, 784: _MANY}
_GRID_SIZES, _GRID_COLUMNS = (512, 1024, 2048, 4096), (1, 8, 32, 128, 1024)
# (output channels, input channels, pixels) of the 1x1 layers of MobileNetV1, then two products.
_SPARSERT = (
    *((64, 32, 12544), (128, 64, 3136), (128, 128, 3136), (256, 128, 784), (256, 256, 784), (512, 256, 196)),
    *((512, 512, 196), (1024, 512, 49), (1024, 1024, 49), (512, 512, 1024), (1024, 1024, 512)),
)
_SPARSERT_3X3 = ((64, 56), (128, 28), (256, 14))  # channels, height and width
_SPARSERT_3X3_SPARSITIES = (0.91, 0.96)
_TENSOR_CORE_BLOCKS, _TENSOR_CORE_COLUMNS = ("16x16", "32x32"), (128, 1024)
_STRUCTURED_SIZES, _STRUCTURED_COLUMNS = (2048, 4096), (16, 128, 1024)
_STRUCTURED = (
    *(("block:32x32", 0.90), ("block:32x32", 0.95), ("block:16x16", 0.90), ("block:64x64", 0.90), ("block:16x1", 0.90)),
    *(("block:8x1", 0.90), ("n:m:2:4", 0.50)),
)
_TOKENS = 128  # columns of X where nothing else is said: one sequence of a transformer


def find_cases(
    suite: str,
    target: Target,
    *,
    patterns: Path | None = None,
    columns: Sequence[int] = (),
    sparsities: Sequence[float] = (),
    limit: int | None = None,
    model: Path | None = None,
    parts: Sequence[str] = (),
) -> list[Case]:
    """The cases of a suite. Raises UsageError for an unknown one.

    patterns: folder of dlmc's files. columns, sparsities: only these; a file of patterns is timed at these columns
    instead of its own. limit: at most so many cases, of a file where the suite is made of files. model: its 1x1 layers
    lend sparsert's their weights. parts: only cases whose names contain one of these.
    """
    if suite == "dlmc":
        cases = [
            case for path in pattern_files(patterns) for case in even_sample(file_cases(suite, path, columns), limit)
        ]
    elif suite.endswith(".npz"):
        cases = even_sample(file_cases("file", Path(suite), columns), limit)
    elif suite in SUITES:
        made = _makers(target, model)[suite]()
        made = [case for case in made if not columns or case.n in columns]
        cases = even_sample([case for case in made if _asked(case, sparsities) and _named(case, parts)], limit)
    else:
        raise UsageError(
            f"--suite {suite}: unknown suite{did_you_mean(suite, SUITES)}", hint=f"use {', '.join(SUITES)} or FILE.npz"
        )
    return [case for case in cases if _asked(case, sparsities) and _named(case, parts)]


def _makers(target: Target, model: Path | None) -> dict[str, Callable[[], list[Case]]]:
    return {
        "anchors": anchors, "conv": lambda: convolutions(target), "patterns": lambda: pattern_kinds(target),
        "grid": grid, "structured": structured,
        "sparsert": lambda: sparsert(pointwise_weights(model, target) if model else {}),
    }  # fmt: skip


def grid() -> list[Case]:
    """Square products; the summary has a mean for each N and sparsity. At N = 1 also with weights that are float16."""
    cases = [
        _random_case("grid", (size, size), n, sparsity, "unstructured", f"n={n},s={sparsity:.2f}")
        for n in _GRID_COLUMNS
        for sparsity in _FEW
        for size in _GRID_SIZES
    ]
    for sparsity in _FEW:
        for size in _GRID_SIZES:
            name = f"{size}x{size} n=1 s={sparsity:.2f} float16 weights"
            weight = partial(half_weight, (size, size), sparsity, _seed(name))
            group = f"n=1,s={sparsity:.2f},float16 weights"
            cases.append(Case("grid", name, group, 1, sparsity, partial(matmul_task, name, 1, weight)))
    return cases


def structured() -> list[Case]:
    """Structure that tensor cores gain from, factors, X and Y in float16; papers quote the first two patterns."""
    cases = []
    for pattern, sparsity in _STRUCTURED:
        for n in _STRUCTURED_COLUMNS:
            for size in _STRUCTURED_SIZES:
                kind = pattern.removeprefix("block:").removeprefix("n:m:")
                name = f"{size}x{size} n={n} s={sparsity:.2f} {kind} fp16"
                weight = partial(random_weight, (size, size), sparsity, _seed(name), pattern)
                group = f"{kind},s={sparsity:.2f},n={n}"
                cases.append(Case("structured", name, group, n, sparsity, partial(half_task, name, n, weight)))
    return cases


def sparsert(weights: dict[tuple[int, int], np.ndarray]) -> list[Case]:
    """SparseRT's cases at 90 and 95 %, its 3x3 layers at 91 and 96 %. weights: by shape, instead of random ones."""
    cases = [
        _random_case("sparsert", (rows, columns), n, sparsity, "unstructured", f"product,s={sparsity:.2f}")
        for sparsity in _FEW
        for rows, columns, n in _SPARSERT
        if (rows, columns) not in weights
    ]
    for rows, columns, n in _SPARSERT:
        if (weight := weights.get((rows, columns))) is not None:
            name, sparsity = f"{rows}x{columns} n={n} of the model", 1 - np.count_nonzero(weight) / weight.size
            task = partial(matmul_task, name, n, lambda weight=weight: weight)
            cases.append(Case("sparsert", name, "product, model's weights", n, sparsity, task))
    for sparsity in _SPARSERT_3X3_SPARSITIES:
        for channels, size in _SPARSERT_3X3:
            name = f"conv 3x3 {channels}ch {size}x{size} s={sparsity:.2f}"
            conv = ConvGeometry(channels, size, size, (3, 3), pads=(1, 1, 1, 1))
            weight3 = partial(random_weight, (channels, 9 * channels), sparsity, _seed(name))
            cases.append(
                Case(
                    "sparsert",
                    name,
                    f"conv 3x3,s={sparsity:.2f}",
                    size * size,
                    sparsity,
                    partial(conv_task, name, conv, weight3),
                )
            )
    return cases


def pointwise_weights(model: Path, target: Target) -> dict[tuple[int, int], np.ndarray]:
    """Weight of the model's first pruned 1x1 convolution of each shape (m, k). Raises ModelError."""
    found: dict[tuple[int, int], np.ndarray] = {}
    for task in prepare(model, target).unique_tasks():
        conv = task.workload.conv
        if conv is not None and conv.kernel == (1, 1) and task.workload.pattern.kind != "dense":
            found.setdefault((task.workload.m, task.workload.k), task.weight)
    return found


def anchors() -> list[Case]:
    """Products that every sparse kernel is quoted for; the summary averages over the shapes."""
    cases = [
        _random_case("anchors", shape, n, sparsity, "unstructured", f"n={n},s={sparsity:.2f}")
        for n, sparsities in _SPARSITIES.items()
        for sparsity in sparsities
        for shape in _SHAPES
    ]
    return cases + [_random_case("anchors", shape, 128, 0.95, "block:4x1", "n=128,s=0.95,4x1") for shape in _SHAPES]


def pattern_kinds(target: Target) -> list[Case]:
    """Patterns of many kinds, on a CPU for all shapes of the anchors; for a GPU also blocks that tensor cores take."""
    shapes = ((1024, 1024),) if target.kind == "cuda" else _SHAPES
    kinds = ("unstructured", "block:4x1", "block:8x1", "block:16x1", "block:1x4", "block:4x4")
    cases = [
        _random_case("patterns", shape, 128, sparsity, kind, f"{kind.removeprefix('block:')},s={sparsity:.2f}")
        for kind in kinds
        for sparsity in _FEW
        for shape in shapes
    ]
    for kept, sparsity in ((2, 0.5), (1, 0.75)):
        cases += [_random_case("patterns", shape, 128, sparsity, f"n:m:{kept}:4", f"{kept}:4") for shape in shapes]
    for sparsity in _FEW:
        name = f"1024x1024 n=128 s={sparsity:.2f} uneven rows"
        weight = partial(uneven_rows, (1024, 1024), sparsity, _seed(name))
        group = f"uneven rows,s={sparsity:.2f}"
        cases.append(Case("patterns", name, group, 128, sparsity, partial(matmul_task, name, 128, weight)))
    return cases + (_large_blocks() if target.kind == "cuda" else [])


def _large_blocks() -> list[Case]:
    return [
        _random_case("patterns", (1024, 1024), n, sparsity, f"block:{size}", f"{size},n={n},s={sparsity:.2f}")
        for size in _TENSOR_CORE_BLOCKS
        for n in _TENSOR_CORE_COLUMNS
        for sparsity in _FEW
    ]


def pattern_files(folder: Path | None) -> list[Path]:
    """The .npz files of a folder. Raises UsageError when there are none."""
    files = sorted(folder.glob("*.npz")) if folder is not None else []
    if not files:
        raise UsageError(
            "suite dlmc: no files of patterns" + (f" in '{folder}'" if folder else ""),
            hint="give their folder with --patterns DIR; docs/benchmarks.md describes the format",
        )
    return files


def file_cases(suite: str, path: Path, columns: Sequence[int] = ()) -> list[Case]:
    """The matrices of a file, each at the columns of X that its network uses, or at all of `columns`."""
    used = read_columns(path.parent)
    return [
        _file_case(suite, path.stem, pattern, n)
        for pattern in read_patterns(path)
        for n in columns or (used.get(pattern.name, _TOKENS),)
    ]


def _file_case(suite: str, group: str, pattern: Pattern, n: int) -> Case:
    seed = _seed(pattern.name)
    shape = (pattern.rows, pattern.columns)
    return Case(
        suite,
        pattern.name,
        group,
        n,
        pattern.sparsity,
        partial(matmul_task, pattern.name, n, partial(pattern.weight, seed)),
        partial(matmul_task, f"{pattern.name}.random", n, partial(random_weight, shape, pattern.sparsity, seed)),
    )


def _random_case(suite: str, shape: tuple[int, int], n: int, sparsity: float, pattern: str, group: str) -> Case:
    name = f"{shape[0]}x{shape[1]} n={n} s={sparsity:.2f} {pattern}"
    weight: Callable[[], np.ndarray] = partial(random_weight, shape, sparsity, _seed(name), pattern)
    return Case(suite, name, group, n, sparsity, partial(matmul_task, name, n, weight))


def random_weight(shape: tuple[int, int], sparsity: float, seed: int, pattern: str = "unstructured") -> np.ndarray:
    """A random normal float32 matrix pruned by magnitude: its positions are random, their number is exact."""
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return prune_weight(weight, sparsity, pattern)


def half_weight(shape: tuple[int, int], sparsity: float, seed: int) -> np.ndarray:
    """random_weight with values that are float16."""
    return random_weight(shape, sparsity, seed).astype(np.float16).astype(np.float32)


def uneven_rows(shape: tuple[int, int], sparsity: float, seed: int) -> np.ndarray:
    """Rows as real pruned layers have them: some empty, some many times as long as the mean (up to 30, if k allows)."""
    m, k = shape
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0.0, 1.5, m)
    share[rng.permutation(m)[: m // 20]] = 0.0
    target = (1.0 - sparsity) * m * k
    longest = min(k, round(30 * target / m))
    scale = target / share.sum()
    for _ in range(20):  # rows that are cut off leave their rest to the others
        lengths = np.minimum(np.rint(share * scale), longest)
        scale *= target / lengths.sum()
    weight = np.zeros(shape, np.float32)
    for row, length in enumerate(lengths.astype(int)):
        weight[row, rng.permutation(k)[:length]] = rng.uniform(0.5, 1.5, length)
    return weight


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())


def _named(case: Case, parts: Sequence[str]) -> bool:
    return not parts or any(part in case.name for part in parts)


def _asked(case: Case, sparsities: Sequence[float]) -> bool:
    return not sparsities or any(abs(case.sparsity - wanted) < 0.005 for wanted in sparsities)
