"""Which instructions of pattern code bind on this core: clocks per FMA as kinds of instructions are left out.

    taskset -c 1 python scripts/bench_ports.py [--rows 30] [--columns 384] [--groups 16] [--sparsity 0.9,0.95,0.98]

Takes the code that formats/pattern_asm.py emits for the middle K block of a random matrix, with X, Y and weights in L1
and L2, and times it whole and without the loads of X, the loads of sums, their stores, or the loads of weights. What
takes the time of the FMAs alone is bound by them; what gets faster without its loads is bound by those. Needs AVX-512
and a C compiler (cc). A clock is the time of an FMA whose operands are in registers, which assumes one FMA per clock
unless --fmas-per-clock says otherwise. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchlib.markdown import markdown_table

from sparsetvm.analysis.magnitude import prune_weight
from sparsetvm.core.target import host_target
from sparsetvm.errors import SparseTvmError, TargetError
from sparsetvm.formats.pattern_asm import emit_pieces
from sparsetvm.formats.pieces import CodePlan, Epilog

LANES = 16
_CALLER = (
    "void call(void (*f)(float*, float*, float*), float* x, float* y, float* w, long n) { while (n--) f(x, y, w); }"
)
_X, _SUM, _STORE = (
    re.compile(pattern)
    for pattern in (r"vmovups -?\d+\(%(rdi|r10)\), ", r"vmovups \d+\(%rsi\), ", r"vmovups %zmm\d+, \d+\(%rsi\)")
)
_WEIGHT = re.compile(r"vfmadd231ps -?\d+\(%rdx\)\{1to16\}, (%zmm\d+)")
_REPEATS, _SECONDS = 300, 1e-4


def without(*kinds: re.Pattern[str]) -> Callable[[list[str]], list[str]]:
    return lambda code: [line for line in code if not any(kind.match(line) for kind in kinds)]


def weights_in_registers(code: list[str]) -> list[str]:
    return [_WEIGHT.sub(r"vfmadd231ps \1, \1", line) for line in code]


VARIANTS: dict[str, Callable[[list[str]], list[str]]] = {
    "FMAs alone": lambda code: weights_in_registers(without(_X, _SUM, _STORE)(code)),
    "with weights": without(_X, _SUM, _STORE),
    "with X": lambda code: weights_in_registers(without(_SUM, _STORE)(code)),
    "with weights and X": without(_SUM, _STORE),
    "and stores": without(_SUM),
    "and sums: all": without(),
}


def middle_piece(rows: int, columns: int, groups: int, sparsity: float) -> tuple[list[str], int]:
    """(instructions, FMAs) of the second of three K blocks of a random matrix."""
    shape = (rows * groups, 3 * columns)
    weight = prune_weight(np.random.default_rng(0).standard_normal(shape).astype(np.float32), sparsity, "unstructured")
    plan = CodePlan(rows, columns, groups, rows_first=True, clustered=False, runs=0)
    taps = np.arange(shape[1]) % columns * LANES  # every K block reads the same X, which is in L1
    pieces, _ = emit_pieces(weight, (taps,), shape[0], LANES, LANES, plan, Epilog(False, 0, "none", False))
    return pieces[1].code.replace("$$", "$").split("\\0A"), pieces[1].weights


def compile_all(bodies: list[list[str]], folder: Path) -> ctypes.CDLL:
    """A library with the functions f0, f1, ... (x, y, w) and `call`."""
    functions = [
        f".globl f{i}\n.p2align 6\nf{i}:\n" + "\n".join((*b, "vzeroupper", "ret")) for i, b in enumerate(bodies)
    ]
    (folder / "f.s").write_text(".text\n" + "\n".join((*functions, '.section .note.GNU-stack,"",@progbits', "")))
    (folder / "call.c").write_text(_CALLER)
    built = subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", "f.s", "call.c", "-o", "f.so"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        raise TargetError(f"cc cannot assemble the code: {built.stderr.strip()[:300]}", hint="install a newer binutils")
    return ctypes.CDLL(str(folder / "f.so"))


def aligned(floats: int) -> np.ndarray:
    whole = np.zeros(floats + 1024, np.float32)
    return whole[-whole.ctypes.data % 4096 // 4 :][:floats]


def seconds(library: ctypes.CDLL, function: int, buffers: list[np.ndarray]) -> float:
    """Fastest time of one run."""
    pointers = [ctypes.c_void_p(buffer.ctypes.data) for buffer in buffers]

    def run(number: int) -> float:
        begun = time.perf_counter()
        library.call(getattr(library, f"f{function}"), *pointers, ctypes.c_long(number))
        return (time.perf_counter() - begun) / number

    number = max(1, round(_SECONDS / max(min(run(10) for _ in range(5)), 1e-7)))
    return min(run(number) for _ in range(_REPEATS))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--columns", type=int, default=384)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--sparsity", default="0.9,0.95,0.98")
    parser.add_argument("--fmas-per-clock", type=int, default=1)
    args = parser.parse_args()
    try:
        if host_target(1).isa != "avx512":
            raise TargetError("this CPU lacks AVX512", hint="run it on one that has it")
        columns = {}
        for sparsity in map(float, args.sparsity.split(",")):
            code, fmas = middle_piece(args.rows, args.columns, args.groups, sparsity)
            with tempfile.TemporaryDirectory(prefix="sparsetvm-ports-") as folder:
                library = compile_all([change(code) for change in VARIANTS.values()], Path(folder))
                buffers = [
                    aligned(size) for size in (LANES * args.columns, LANES * args.rows * args.groups, fmas + 512)
                ]
                times = [seconds(library, i, buffers) for i in range(len(VARIANTS))]
            clocks = [time_s / times[0] / args.fmas_per_clock for time_s in times]
            columns[f"{sparsity:.0%}"] = [f"{clock:.2f}" for clock in clocks]
        print(markdown_table(["clocks per FMA", *columns], list(zip(VARIANTS, *columns.values(), strict=True))))
    except SparseTvmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
