"""Write the networks behind the figures in README.md as ONNX files with random, magnitude-pruned weights.

    python scripts/make_models.py DIR [NAME...] [--sparsity 0.9] [--batch 1 | --open]

NAME: resnet50, mobilenet_v1, bert_1l, bert_4l, mlp, speech_commands, speech_commands_k_winners (all when none is
given). --open leaves the batch open, of the berts the number of tokens: see docs/buckets.md. Weights are He-scaled
Gaussians from a fixed seed; the smallest of each layer are zero and the rest is scaled up, so that activations keep
their range. Accuracy means nothing here: the networks measure speed on the layer shapes that people prune. First
convolutions, depthwise convolutions and the classifiers of MobileNet and speech_commands stay dense, as is usual.
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 13, 8
OPEN = "N"  # the name of the batch, or number of tokens, that stays open
Size = int | str


class Network:
    """Collects nodes and weights; every method returns the name of its output."""

    def __init__(self, sparsity: float) -> None:
        self.rng = np.random.default_rng(0)
        self.sparsity = sparsity
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, data: np.ndarray) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(data), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def weight(
        self, shape: tuple[int, ...], fan_in: int, *, pruned: bool, outputs: int = 0, block: int = 1
    ) -> np.ndarray:
        """outputs: the axis of the output features, of which `block` neighbours are pruned together."""
        values = self.rng.standard_normal(shape) * math.sqrt(2 / fan_in)
        if pruned and self.sparsity > 0:
            blocks = np.moveaxis(values, outputs, 0).reshape(-1, block, values.size // shape[outputs])
            norms = np.linalg.norm(blocks, axis=1)
            kept_blocks = np.repeat(norms >= np.quantile(norms, self.sparsity), block, axis=0)
            others = tuple(size for axis, size in enumerate(shape) if axis != outputs)
            kept = np.moveaxis(kept_blocks.reshape(shape[outputs], *others), 0, outputs)
            values = values * kept * np.sqrt(np.square(values).sum() / np.square(values[kept]).sum())
        return values.astype(np.float32)

    def conv(
        self, x: str, channels: tuple[int, int], kernel: int, stride: int = 1, *, groups: int = 1, pruned: bool = True
    ) -> str:
        shape = (channels[1], channels[0] // groups, kernel, kernel)
        weight = self.constant(self.weight(shape, shape[1] * kernel * kernel, pruned=pruned))
        bias = self.constant((self.rng.standard_normal(channels[1]) * 0.05).astype(np.float32))
        pads = [kernel // 2] * 4
        size = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": pads, "group": groups}
        return self.node("Conv", x, weight, bias, **size)

    def linear(self, x: str, features: tuple[int, int], *, pruned: bool = True, block: int = 1) -> str:
        weight = self.constant(self.weight(features, 2 * features[0], pruned=pruned, outputs=1, block=block))
        bias = self.constant((self.rng.standard_normal(features[1]) * 0.05).astype(np.float32))
        return self.node("Add", self.node("MatMul", x, weight), bias)

    def save(self, path: Path, inputs: dict[str, tuple[Size, ...]], output: str, shape: tuple[Size, ...]) -> None:
        def info(name: str, dims: tuple[Size, ...]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))

        self.nodes.append(helper.make_node("Identity", [output], ["output"], "output"))
        given = [info(name, dims) for name, dims in inputs.items()]
        graph = helper.make_graph(self.nodes, path.stem, given, [info("output", shape)], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def resnet50(path: Path, batch: Size, sparsity: float) -> None:
    """ResNet-50 v1.5 at 224 x 224: the stride is in the 3x3 convolution, batch norms are folded."""
    net = Network(sparsity)
    x = net.node("Relu", net.conv("x", (3, 64), 7, 2, pruned=False))
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            y = net.node("Relu", net.conv(x, (channels, width), 1))
            y = net.node("Relu", net.conv(y, (width, width), 3, stride))
            y = net.conv(y, (width, 4 * width), 1)
            skip = x if block else net.conv(x, (channels, 4 * width), 1, stride)
            x = net.node("Relu", net.node("Add", y, skip))
            channels = 4 * width
    x = net.node("Flatten", net.node("GlobalAveragePool", x), axis=1)
    net.save(path, {"x": (batch, 3, 224, 224)}, net.linear(x, (2048, 1000)), (batch, 1000))


def mobilenet_v1(path: Path, batch: Size, sparsity: float) -> None:
    """MobileNetV1 1.0 at 224 x 224 with ReLU6; the 1x1 convolutions are pruned."""
    net = Network(sparsity)
    low, high = net.constant(np.float32(0)), net.constant(np.float32(6))
    x = net.node("Clip", net.conv("x", (3, 32), 3, 2, pruned=False), low, high)
    channels = 32
    for width, stride in [
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ]:
        depthwise = net.conv(x, (channels, channels), 3, stride, groups=channels, pruned=False)
        x = net.node("Clip", depthwise, low, high)
        x = net.node("Clip", net.conv(x, (channels, width), 1), low, high)
        channels = width
    x = net.node("Flatten", net.node("GlobalAveragePool", x), axis=1)
    net.save(path, {"x": (batch, 3, 224, 224)}, net.linear(x, (1024, 1000), pruned=False), (batch, 1000))


def bert(path: Path, batch: Size, sparsity: float, layers: int = 4) -> None:
    """Encoder layers of BERT-base, 128 tokens, as torch.onnx writes them at opset 13.

    With an open size the batch is 1 and the number of tokens open.
    """
    net = Network(sparsity)
    tokens: Size = 128 if isinstance(batch, int) else batch
    batch = batch if isinstance(batch, int) else 1
    hidden, heads = 768, 12
    kept = 0 if isinstance(tokens, str) else tokens  # 0: as the input has it
    split = net.constant(np.array([batch, kept, heads, hidden // heads]))
    merge = net.constant(np.array([batch, kept, hidden]))

    def scalar(value: float) -> str:
        return net.constant(np.float32(value))

    def norm(x: str) -> str:
        centred = net.node("Sub", x, net.node("ReduceMean", x, axes=[-1]))
        variance = net.node("ReduceMean", net.node("Pow", centred, scalar(2)), axes=[-1])
        unit = net.node("Div", centred, net.node("Sqrt", net.node("Add", variance, scalar(1e-12))))
        gamma, beta = (net.rng.standard_normal(hidden) * 0.05 for _ in range(2))
        scaled = net.node("Mul", unit, net.constant((1 + gamma).astype(np.float32)))
        return net.node("Add", scaled, net.constant(beta.astype(np.float32)))

    def project(x: str, perm: list[int]) -> str:
        return net.node("Transpose", net.node("Reshape", net.linear(x, (hidden, hidden)), split), perm=perm)

    x = "hidden_states"
    for _ in range(layers):
        q, k, v = (project(x, perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
        scores = net.node("Div", net.node("MatMul", q, k), scalar(math.sqrt(hidden // heads)))
        context = net.node("MatMul", net.node("Softmax", net.node("Add", scores, "attention_bias"), axis=-1), v)
        context = net.node("Reshape", net.node("Transpose", context, perm=[0, 2, 1, 3]), merge)
        x = norm(net.node("Add", net.linear(context, (hidden, hidden)), x))
        y = net.linear(x, (hidden, 4 * hidden))
        erf = net.node("Erf", net.node("Div", y, scalar(math.sqrt(2))))
        y = net.node("Mul", net.node("Mul", y, net.node("Add", erf, scalar(1))), scalar(0.5))
        x = norm(net.node("Add", net.linear(y, (4 * hidden, hidden)), x))
    shape = (batch, tokens, hidden)
    net.save(path, {"hidden_states": shape, "attention_bias": (batch, 1, 1, tokens)}, x, shape)


def mlp(path: Path, batch: Size, sparsity: float) -> None:
    """784-2048-2048-10 with ReLU, all layers pruned."""
    net = Network(sparsity)
    x = net.node("Relu", net.linear("x", (784, 2048)))
    x = net.node("Relu", net.linear(x, (2048, 2048)))
    net.save(path, {"x": (batch, 784)}, net.linear(x, (2048, 10)), (batch, 10))


def speech_commands(path: Path, batch: Size, sparsity: float, *, k_winners: bool = False, blocks: bool = False) -> None:
    """The network for Google Speech Commands of Hunter et al., "Two Sparsities Are Better Than One" (2021).

    A 32 x 32 spectrogram, two 5 x 5 convolutions of 64 channels with max pooling, 1500 hidden units, 12 words: 2.5
    million parameters, nearly all in the hidden layer. The second convolution and the hidden layer are pruned.
    k_winners: instead of ReLU, the largest 9.5 % of all pooled values of the first convolution stay, 12.5 % of those
    of the second, 10 % of the hidden units (what Numenta's code has for this data set).
    blocks: prune 16 neighbouring filters together, and 4 neighbouring hidden units.
    """
    net = Network(sparsity)

    def activate(x: str, shape: tuple[Size, ...], density: float) -> str:
        if not k_winners:
            return net.node("Relu", x)
        n = math.prod(shape[1:])
        flat = x if len(shape) == 2 else net.node("Reshape", x, net.constant(np.array([-1, n])))
        values, at = f"top{len(net.nodes)}", f"at{len(net.nodes)}"
        count = net.constant(np.array([round(density * n)]))
        net.nodes.append(helper.make_node("TopK", [flat, count], [values, at], values, axis=1))
        open_ = isinstance(batch, str)
        zeros = (
            net.node("ConstantOfShape", net.node("Shape", flat)) if open_ else net.constant(np.zeros((batch, n), "f4"))
        )
        kept = net.node("ScatterElements", zeros, at, values, axis=1)
        return kept if len(shape) == 2 else net.node("Reshape", kept, net.constant(np.array([-1, *shape[1:]])))

    def conv(x: str, channels: tuple[int, int], pool: int, *, pruned: bool) -> str:
        shape = (channels[1], channels[0], 5, 5)
        weight = net.weight(shape, channels[0] * 25, pruned=pruned, block=16 if blocks else 1)
        bias = (net.rng.standard_normal(channels[1]) * 0.05).astype(np.float32)
        y = net.node("Conv", x, net.constant(weight), net.constant(bias), kernel_shape=[5, 5])
        return net.node("MaxPool", y, kernel_shape=[pool, pool], strides=[pool, pool])

    x = activate(conv("x", (1, 64), 2, pruned=False), (batch, 64, 14, 14), 0.095)
    x = activate(conv(x, (64, 64), 2, pruned=True), (batch, 64, 5, 5), 0.125)
    x = activate(net.linear(net.node("Flatten", x, axis=1), (1600, 1500), block=4 if blocks else 1), (batch, 1500), 0.1)
    net.save(path, {"x": (batch, 1, 32, 32)}, net.linear(x, (1500, 12), pruned=False), (batch, 12))


def speech_commands_k_winners(path: Path, batch: Size, sparsity: float) -> None:
    """`speech_commands` with sparse activations."""
    speech_commands(path, batch, sparsity, k_winners=True)


NETWORKS = {
    "resnet50": resnet50,
    "mobilenet_v1": mobilenet_v1,
    "bert_1l": functools.partial(bert, layers=1),
    "bert_4l": bert,
    "mlp": mlp,
    "speech_commands": speech_commands,
    "speech_commands_k_winners": speech_commands_k_winners,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--sparsity", type=float, default=0.9)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--batch", type=int, default=1)
    size.add_argument("--open", action="store_true")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(NETWORKS))
    if unknown:
        parser.error(f"unknown network {unknown[0]!r}; known: {', '.join(NETWORKS)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names or NETWORKS:
        suffix = "open" if args.open else f"b{args.batch}"
        path = args.folder / f"{name}_s{round(100 * args.sparsity)}_{suffix}.onnx"
        NETWORKS[name](path, OPEN if args.open else args.batch, args.sparsity)
        print(path)


if __name__ == "__main__":
    main()
