"""Small random networks: odd sizes, every activation, residuals, concatenation, pools; for end-to-end tests and
scripts/stress_networks.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from models import ModelBuilder

ACTIVATIONS = ("none", "relu", "relu6", "clip", "gelu", "gelu_tanh", "sigmoid", "silu", "tanh")
# From this number on networks have more kinds of steps; those below stay what they were when a number was noted down.
MORE_FROM = 10_000


def random_network(seed: int, *, wide: bool = False) -> ModelBuilder:
    """Network number `seed`: images for even numbers, tokens for odd ones; input "x", outputs "y" and sometimes "z".

    wide: more kinds of steps, sizes and patterns; other networks under the same numbers. From number MORE_FROM on wide
    networks also resize images, excite channels and know hard swish.
    """
    rng = np.random.default_rng(seed)
    opset = int(rng.choice([11, 13, 17]))
    builder = (
        _PatternedBuilder(f"random_{seed}", opset=opset, seed=seed)
        if wide
        else ModelBuilder(f"random_{seed}", opset=opset, seed=seed)
    )
    grower = _Images(builder, rng) if seed % 2 == 0 else _Tokens(builder, rng)
    grower.wide, grower.more = wide, wide and seed >= MORE_FROM
    grower.grow(int(rng.integers(3, 7)))
    return builder


class _PatternedBuilder(ModelBuilder):
    """Weights of every pattern: unstructured, blocks, N:M, whole rows or columns, one non-zero."""

    def weight(
        self, shape: Sequence[int], fan_in: int, sparsity: float = 0.0, block: tuple[int, int] = (1, 1)
    ) -> np.ndarray:
        data = super().weight(shape, fan_in)
        matrix = data.reshape(shape[0], -1)
        rows, cols = matrix.shape
        keep, kind = np.ones(matrix.shape, bool), self.rng.integers(8)
        if sparsity and kind < 3:
            keep = self.rng.random(matrix.shape) >= sparsity
        elif sparsity and kind == 3:
            size = [int(n) for n in self.rng.choice([1, 2, 4], 2)]
            blocks = self.rng.random((-(-rows // size[0]), -(-cols // size[1]))) >= sparsity
            keep = np.kron(blocks, np.ones(size, bool))[:rows, :cols]
        elif sparsity and kind == 4:
            keep = np.arange(cols)[None, :] % 4 < self.rng.integers(1, 3)
        elif sparsity and kind == 5:
            keep = self.rng.random((rows, 1)) >= sparsity
        elif sparsity and kind == 6:
            keep = self.rng.random((1, cols)) >= sparsity
        elif sparsity:
            keep = np.arange(rows * cols).reshape(rows, cols) == self.rng.integers(rows * cols)
        return np.ascontiguousarray(np.where(keep, matrix, 0).astype(np.float32).reshape(shape))


class _Grower:
    wide = more = False

    def __init__(self, builder: ModelBuilder, rng: np.random.Generator) -> None:
        self.b, self.rng = builder, rng

    def one_of(self, *choices: int) -> int:
        return int(self.rng.choice(choices))

    def maybe(self, chance: float = 0.5) -> bool:
        return bool(self.rng.random() < chance)

    def arithmetic(self, x: str) -> str:
        """An operator between a value and a constant, or itself."""
        b, kind = self.b, self.rng.integers(5)
        if kind == 0:
            return b.op("Sub", b.const(float(self.rng.uniform(-2, 2))), x)
        if kind == 1:
            return b.op("Div", x, b.const(float(self.rng.uniform(0.5, 3))))
        if kind == 2:
            return b.op("Mul", x, x)
        if kind == 3:
            return b.op("Sub", x, b.relu(x))
        return b.op("Mul", b.const(float(self.rng.uniform(-2, 2))), b.op("Add", x, b.const(0.5)))

    def sparsity(self) -> float:
        return float(self.rng.choice([0.0, 0.5, 0.8, 0.9]))

    def activation(self, x: str) -> str:
        kind, b = str(self.rng.choice((*ACTIVATIONS, "hard_swish") if self.more else ACTIVATIONS)), self.b
        if kind == "none":
            return x
        if kind == "clip":
            low, high = self.rng.uniform(-1, 0.2), self.rng.uniform(0.5, 2)
            return b.op("Clip", x, b.const(float(low)), b.const(float(high)))
        if kind in ("sigmoid", "tanh"):
            return b.op(kind.capitalize(), x)
        return str(getattr(b, kind)(x))


class _Images(_Grower):
    """Convolutions of all kinds over (batch, channels, height, width), then a classifier or the image itself."""

    def grow(self, steps: int) -> None:
        b = self.b
        self.batch, self.channels = self.one_of(1, 2, 3), self.one_of(1, 3, 4, 8)
        self.size = [int(n) for n in self.rng.integers(5, 18, 2)]
        if self.wide and self.maybe(0.3):
            self.channels, self.size = self.one_of(1, 7, 13), [self.one_of(1, 2, 11), self.one_of(1, 5, 19)]
        x = b.input("x", (self.batch, self.channels, *self.size))
        more = [self.arithmetic, self.normalised, self.flipped, self.cut, self.padded, self.softmax]
        more += [self.excited, self.resized] if self.more else []
        for _ in range(steps):
            step = self.rng.choice(
                [
                    *(more if self.wide else []),
                    self.conv,
                    self.conv,
                    self.conv,
                    self.residual,
                    self.concat,
                    self.pool,
                    self.depthwise,
                    self.bottleneck,
                ]
            )
            x = step(x)
        if self.maybe(0.3):
            b.op("Identity", x, out="z")
            b.output("z")
        if self.maybe(0.7):
            features = self.channels * self.size[0] * self.size[1]
            if self.maybe():
                x, features = b.op(str(self.rng.choice(["GlobalAveragePool", "GlobalMaxPool"])), x), self.channels
            x = self.activation(
                b.gemm(b.op("Flatten", x, axis=1), features, self.one_of(5, 16), sparsity=self.sparsity())
            )
        b.op("Identity", x, out="y")
        b.output("y")

    def resized(self, x: str) -> str:
        """Twice as large, at most 40 pixels."""
        if max(self.size) > 20:
            return x
        self.size = [2 * size for size in self.size]
        mode = str(self.rng.choice(["linear", "nearest"]))
        scales = self.b.const(np.array([1, 1, 2, 2], np.float32))
        coordinates = "half_pixel" if mode == "linear" else "asymmetric"
        return self.b.op(
            "Resize", x, "" if self.b.opset >= 13 else self.b.const(np.zeros(0, np.float32)), scales,
            mode=mode, coordinate_transformation_mode=coordinates, nearest_mode="floor",
        )  # fmt: skip

    def excited(self, x: str) -> str:
        """Channels times factors that all pixels together decide on."""
        b, hidden = self.b, self.one_of(1, 4, 9)
        inner = b.relu(b.conv(b.op("GlobalAveragePool", x), self.channels, hidden, sparsity=self.sparsity()))
        gate = b.conv(inner, hidden, self.channels, sparsity=self.sparsity())
        gate = b.op("HardSigmoid", gate, alpha=1 / 6) if self.maybe() else b.op("Sigmoid", gate)
        return b.op("Mul", x, gate) if self.maybe() else b.op("Mul", gate, x)

    def normalised(self, x: str) -> str:
        return self.activation(self.b.batch_norm(self.same(x, self.one_of(3, 8)), self.channels))

    def flipped(self, x: str) -> str:
        self.size.reverse()
        return self.b.op("Transpose", x, perm=[0, 1, 3, 2])

    def cut(self, x: str) -> str:
        b, axis = self.b, self.one_of(2, 3)
        size = self.size[axis - 2]
        start = int(self.rng.integers(0, max(size // 2, 1)))
        self.size[axis - 2] = size - start
        return b.op("Slice", x, b.const([start]), b.const([size]), b.const([axis]))

    def padded(self, x: str) -> str:
        pads = [0, 0, *(self.one_of(0, 1, 2) for _ in range(2)), 0, 0, *(self.one_of(0, 1) for _ in range(2))]
        self.size = [n + pads[2 + i] + pads[6 + i] for i, n in enumerate(self.size)]
        return self.b.op("Pad", x, self.b.const(pads))

    def softmax(self, x: str) -> str:
        return self.b.op("Softmax", x, axis=-1)

    def conv(self, x: str) -> str:
        kernel = (
            [self.one_of(1, 1, 2, 3, 3, 5), self.one_of(1, 2, 3, 3, 5)] if self.maybe() else [self.one_of(1, 3)] * 2
        )
        kernel = [min(k, n) for k, n in zip(kernel, self.size, strict=True)]
        dilations = [self.one_of(1, 1, 2) if (k - 1) * 2 < n else 1 for k, n in zip(kernel, self.size, strict=True)]
        strides = [self.one_of(1, 1, 2, 3), self.one_of(1, 1, 2)]
        pads = [int(self.rng.integers(0, kernel[axis % 2] + 1)) for axis in range(4)]
        groups = int(self.rng.choice([g for g in (1, 2, 4) if self.channels % g == 0]))
        return self.activation(
            self.convolved(x, groups * self.one_of(1, 3, 6, 8), kernel, strides, pads, dilations, groups)
        )

    def convolved(
        self,
        x: str,
        channels: int,
        kernel: list[int],
        strides: list[int],
        pads: list[int],
        dilations: list[int],
        groups: int,
    ) -> str:
        b = self.b
        shape = (channels, self.channels // groups, *kernel)
        inputs = [x, b.const(b.weight(shape, int(np.prod(shape[1:])), self.sparsity()), "w")]
        if self.maybe():
            inputs.append(b.const(b.vector(channels), "b"))
        self.channels = channels
        self.size = [
            (n + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
            for i, n in enumerate(self.size)
        ]
        return b.op("Conv", *inputs, kernel_shape=kernel, strides=strides, pads=pads, dilations=dilations, group=groups)

    def same(self, x: str, channels: int) -> str:
        k = self.one_of(1, 3)
        return self.convolved(x, channels, [k, k], [1, 1], [k // 2] * 4, [1, 1], 1)

    def residual(self, x: str) -> str:
        y = self.same(x, self.channels)
        if self.maybe():
            y = self.activation(y)
        y = self.b.op("Add", *((y, x) if self.maybe() else (x, y)))
        return self.activation(y)

    def bottleneck(self, x: str) -> str:
        """1x1 convolutions that read each other, the first or the last one strided, and a residual where it fits."""
        for stride in (self.one_of(1, 2), 1, self.one_of(1, 1, 2)):
            shape = [self.channels, *self.size]
            channels = self.one_of(self.channels, 8, 20, 33)
            y = self.convolved(x, channels, [1, 1], [stride] * 2, [0] * 4, [1, 1], 1)
            if shape == [self.channels, *self.size] and self.maybe():
                y = self.b.op("Add", y, x)
            x = self.activation(y)
        return x

    def concat(self, x: str) -> str:
        before = self.channels
        y = self.activation(self.same(x, self.one_of(2, 5, 8)))
        self.channels += before
        return self.b.op("Concat", x, y, axis=1)

    def depthwise(self, x: str) -> str:
        multiplier = self.one_of(1, 1, 1, 2)
        strides = [self.one_of(1, 2)] * 2
        kernel = [3, 3] if min(self.size) >= 3 else [1, 1]
        pads = [kernel[0] // 2] * 4
        return self.activation(
            self.convolved(x, multiplier * self.channels, kernel, strides, pads, [1, 1], self.channels)
        )

    def pool(self, x: str) -> str:
        if min(self.size) < 3:
            return x
        kind = str(self.rng.choice(["MaxPool", "AveragePool"]))
        pads, strides = [self.one_of(0, 1) for _ in range(4)], [self.one_of(1, 2), self.one_of(1, 2)]
        extra = {"count_include_pad": self.one_of(0, 1)} if kind == "AveragePool" else {}
        self.size = [(n + pads[i] + pads[i + 2] - 3) // strides[i] + 1 for i, n in enumerate(self.size)]
        return self.b.op(kind, x, kernel_shape=[3, 3], strides=strides, pads=pads, **extra)


class _Tokens(_Grower):
    """Products over (batch, tokens, features) or (tokens, features)."""

    def grow(self, steps: int) -> None:
        b = self.b
        self.lead = (
            (self.one_of(1, 2, 3), self.one_of(1, 3, 7, 16, 21)) if self.maybe(0.6) else (self.one_of(1, 2, 5, 33),)
        )
        self.features = self.one_of(3, 8, 17, 32)
        if self.wide and self.maybe(0.3):
            self.features = self.one_of(1, 2, 61, 128)
        x = b.input("x", (*self.lead, self.features))
        more = [self.arithmetic, self.softmax, self.swapped, self.attention, self.cut, self.mean]
        for _ in range(steps):
            step = self.rng.choice(
                [
                    *(more if self.wide else []),
                    self.linear,
                    self.linear,
                    self.residual,
                    self.concat,
                    self.norm,
                    self.reshape,
                    self.gate,
                ]
            )
            x = step(x)
        if self.maybe(0.4):
            b.op("Softmax", x, axis=-1, out="z")
            b.output("z")
        b.op("Identity", self.product(x, self.one_of(1, 10)), out="y")
        b.output("y")

    def product(self, x: str, features: int) -> str:
        k, self.features = self.features, features
        if len(self.lead) == 1 and self.maybe():
            return self.b.gemm(x, k, features, sparsity=self.sparsity(), bias=self.maybe())
        return self.b.linear(x, k, features, sparsity=self.sparsity(), bias=self.maybe())

    def linear(self, x: str) -> str:
        return self.activation(self.product(x, self.one_of(1, 5, 16, 30, 48)))

    def residual(self, x: str) -> str:
        y = self.product(x, self.features)
        return self.activation(self.b.op("Add", *((y, x) if self.maybe() else (x, y))))

    def concat(self, x: str) -> str:
        before = self.features
        y = self.linear(x)
        self.features += before
        return self.b.op("Concat", y, x, axis=-1)

    def softmax(self, x: str) -> str:
        return self.b.op("Softmax", x, axis=-1)

    def swapped(self, x: str) -> str:
        """Features become tokens."""
        *front, tokens = self.lead
        self.lead, self.features = (*front, self.features), tokens
        return self.b.op("Transpose", x, perm=[*range(len(front)), len(front) + 1, len(front)])

    def attention(self, x: str) -> str:
        heads, depth = self.one_of(1, 2, 3), self.one_of(4, 8, 11)
        if len(self.lead) != 2:
            return self.linear(x)
        x = self.product(x, heads * depth)
        return self.b.attention(x, *self.lead, heads * depth, heads, sparsity=self.sparsity())

    def cut(self, x: str) -> str:
        b, start = self.b, int(self.rng.integers(0, max(self.features // 2, 1)))
        x = b.op("Slice", x, b.const([start]), b.const([self.features]), b.const([len(self.lead)]))
        self.features -= start
        return x

    def mean(self, x: str) -> str:
        """The mean of all tokens beside each of them."""
        axis = len(self.lead) - 1
        return self.b.op("Sub", x, self.b.reduce_mean(x, [axis]))

    def norm(self, x: str) -> str:
        return self.b.layer_norm(x, self.features)

    def gate(self, x: str) -> str:
        width = self.features
        left = self.product(x, width)
        self.features = width
        return self.b.op("Mul", left, self.activation(x))

    def reshape(self, x: str) -> str:
        self.lead = (int(np.prod(self.lead)),) if self.maybe() else (1, *self.lead[-1:], int(np.prod(self.lead[:-1])))
        return self.b.op("Reshape", x, self.b.const([*self.lead, self.features]))
