"""Schedule templates that make wrong kernels on purpose: each real template with one more knob, the number of a mutant.

Number 0 is the template itself. Every other number is one small mistake, of which there are three sorts:
- in what is packed: another weight matrix or bias than the one that was asked for;
- in an array after packing: a value, an index, a pointer;
- in the generated kernel: a constant or an operator of its TIR, an instruction of its assembly.
Workers import this module by its name and find the templates in TEMPLATES.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from sparsetvm.schedules.base import Packed, Template, template, template_names

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Choice
from sparsetvm.space.space import Space

MUTANTS = 20_000
PREFIX = "mutant."
_KNOB = "mutant"
Random = random.Random


class NoMutant(ValueError):
    """This mistake cannot be made in this kernel."""


def _non_zero(weight: np.ndarray, rng: Random) -> tuple[int, int]:
    rows, columns = np.nonzero(weight)
    at = rng.randrange(len(rows))
    return int(rows[at]), int(columns[at])


def _flip_sign(weight: np.ndarray, rng: Random) -> None:
    weight[_non_zero(weight, rng)] *= -1


def _scale(weight: np.ndarray, rng: Random) -> None:
    weight[_non_zero(weight, rng)] *= 1.01


def _drop_value(weight: np.ndarray, rng: Random) -> None:
    weight[_non_zero(weight, rng)] = 0


def _drop_row(weight: np.ndarray, rng: Random) -> None:
    weight[_non_zero(weight, rng)[0]] = 0


def _move_to_wrong_column(weight: np.ndarray, rng: Random) -> None:
    row, column = _non_zero(weight, rng)
    free = np.flatnonzero(weight[row] == 0)
    if not free.size:
        raise NoMutant("the row is full")
    weight[row, free[np.abs(free - column).argmin()]] = weight[row, column]
    weight[row, column] = 0


def _move_to_wrong_row(weight: np.ndarray, rng: Random) -> None:
    row, column = _non_zero(weight, rng)
    other = (row + 1) % len(weight)
    weight[[row, other], column] = weight[[other, row], column]


def _swap_rows(weight: np.ndarray, rng: Random) -> None:
    row = _non_zero(weight, rng)[0]
    weight[[row, row - 1]] = weight[[row - 1, row]]


def _shift_row(weight: np.ndarray, rng: Random) -> None:
    row = _non_zero(weight, rng)[0]
    weight[row] = np.roll(weight[row], 1)


_IN_WEIGHTS: tuple[Callable[[np.ndarray, Random], None], ...] = (
    _flip_sign, _scale, _drop_value, _drop_row, _move_to_wrong_column, _move_to_wrong_row, _swap_rows, _shift_row,
)  # fmt: skip


def _wrong_bias(bias: np.ndarray | None, rng: Random) -> np.ndarray:
    if bias is None:
        raise NoMutant("there is no bias")
    wrong = bias.copy()
    at = rng.randrange(len(bias))
    wrong[at] = rng.choice([0.0, -wrong[at], wrong[at - 1]])
    return wrong


def _spoil_array(arrays: tuple[np.ndarray, ...], rng: Random) -> tuple[np.ndarray, ...]:
    """Another value at one place of one array."""
    made = [array.copy() for array in arrays]
    array = made[rng.randrange(len(made))]
    flat = array.reshape(-1)
    at, other = rng.randrange(flat.size), rng.randrange(flat.size)
    if array.dtype.kind == "f":
        flat[at] = rng.choice([-flat[at], 0.0, flat[other], flat[at] * 1.01])
    elif rng.random() < 0.5:
        flat[at] = flat[other]
    else:
        step = rng.choice([-1, 1, 4, 16])
        info = np.iinfo(array.dtype)
        flat[at] = min(max(int(flat[at]) + step, info.min), info.max)
    return tuple(made)


_OPERATORS = {"prim.Add": "prim.Sub", "prim.Sub": "prim.Add", "prim.Mul": "prim.Add", "prim.Max": "prim.Min"}
_OPERATORS |= {"prim.Min": "prim.Max", "prim.LT": "prim.LE", "prim.FloorDiv": "prim.FloorMod"}


def _spoil_tir(function: Any, rng: Random) -> Any:
    """One constant or one operator of the kernel changed, in its JSON form."""
    import tvm

    document = json.loads(tvm.ir.save_json(function))
    nodes = document["nodes"]
    if rng.random() < 0.5:
        found = [node for node in nodes if node["type"] in _OPERATORS]
        if not found:
            raise NoMutant("no such operator")
        node = rng.choice(found)
        node["type"] = _OPERATORS[node["type"]]
    else:
        node = rng.choice([node for node in nodes if node["type"] == "ir.IntImm"])
        value = nodes[node["data"]["value"]]["data"] + rng.choice([-1, 1, 2, -4, 16])
        nodes.append({"type": "int", "data": value})
        node["data"]["value"] = len(nodes) - 1
    return tvm.ir.load_json(json.dumps(document))


_LINE = "\\0A"
_DISPLACEMENT = re.compile(r"(-?\d+)\((%r\w+)\)")


def _spoil_instruction(function: Any, rng: Random) -> Any:
    """One arithmetic or memory instruction of the assembly dropped, negated, or with another address or register."""
    import tvm

    document = json.loads(tvm.ir.save_json(function))
    texts = [n for n in document["nodes"] if n["type"] == "ffi.String" and _LINE in n["data"]]
    if not texts:
        raise NoMutant("no assembly")
    node = rng.choice(texts)
    lines = node["data"].split(_LINE)
    at = rng.choice([i for i, line in enumerate(lines) if re.match(r"v(fn?m|mov|add|max|min|broad)", line)] or [-1])
    if at < 0:
        raise NoMutant("no such instruction")
    line = lines[at]
    changed = rng.choice([_negate, _other_address, _other_register, lambda line, rng: ""])(line, rng)
    lines[at : at + 1] = [changed] if changed else []
    node["data"] = _LINE.join(lines)
    return tvm.ir.load_json(json.dumps(document))


def _negate(line: str, rng: Random) -> str:
    if "vfmadd" not in line:
        raise NoMutant("nothing to negate")
    return line.replace("vfmadd", "vfnmadd")


def _other_address(line: str, rng: Random) -> str:
    if not _DISPLACEMENT.search(line):
        raise NoMutant("no address")
    step = rng.choice([-64, -4, 4, 64])
    return _DISPLACEMENT.sub(lambda found: f"{int(found[1]) + step}({found[2]})", line, count=1)


def _other_register(line: str, rng: Random) -> str:
    registers = re.findall(r"%[yz]mm\d+", line)
    if not registers:
        raise NoMutant("no register")
    kind = registers[-1][:4]
    return f"{line[: line.rindex(registers[-1])]}{kind}{rng.randrange(2, 16)}"


class Mutant(Template):
    """A template that makes mistakes."""

    def __init__(self, base: Template) -> None:
        self._base = base
        self.name = PREFIX + base.name
        self.version = base.version
        self.dense = base.dense

    def matches(self, workload: Workload, target: Target) -> bool:
        return self._base.matches(workload, target)

    def space(self, workload: Workload, target: Target) -> Space:
        base = self._base.space(workload, target)
        knobs = (*base.knobs, Choice(_KNOB, tuple(range(MUTANTS))))
        return msgspec.structs.replace(base, template=self.name, knobs=knobs)

    def default(self, workload: Workload, target: Target) -> Config:
        return mutant_of(self._base.default(workload, target), 0)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        number, rng = _number(config)
        sort = number % 4
        if number and sort == 0:
            if rng.random() < 0.1:
                bias = _wrong_bias(bias, rng)
            else:
                weight = weight.copy()
                rng.choice(_IN_WEIGHTS)(weight, rng)
        packed = self._base.pack(weight, bias, workload, original_of(config), target)
        if number and sort == 1:
            packed = Packed(_spoil_array(packed.arrays, rng), packed.meta)
        return packed

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        number, rng = _number(config)
        function = self._base.kernel(workload, original_of(config), packed, target, symbol)
        if number and number % 4 == 2:
            return _spoil_tir(function, rng)
        if number and number % 4 == 3:
            return _spoil_instruction(function, rng)
        return function


def _number(config: Config) -> tuple[int, Random]:
    number = config.int(_KNOB)
    return number, random.Random(f"mutant {number}")


def mutant_of(config: Config, number: int) -> Config:
    """The mutant of that number of a real config; number 0 makes no mistake."""
    return Config.of(PREFIX + config.template, **dict(config.knobs), **{_KNOB: number})


def original_of(config: Config) -> Config:
    """The real config that a mutant was made of."""
    knobs = {name: value for name, value in config.knobs if name != _KNOB}
    return Config.of(config.template.removeprefix(PREFIX), **knobs)


TEMPLATES = {PREFIX + name: Mutant(template(name)) for name in template_names() if name.startswith("x86.")}
