"""Small ONNX models for tests, in the operator patterns that exporters emit, pruned to a given sparsity.

    builder = ModelBuilder(opset=13)
    x = builder.input("x", (1, 3, 8, 8))
    y = builder.relu(builder.conv(x, 16, 3, pad=1, sparsity=0.8))
    path = builder.output(y).save(tmp_path / "m.onnx")

Shapes are tracked, so that layers need only be told their output size. All weights come from the builder's seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dim = int | str


def prune(weight: np.ndarray, sparsity: float, block: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Zero the share `sparsity` of blocks (rows x columns of the weight as a matrix) that have the smallest norms."""
    if sparsity <= 0:
        return weight
    matrix = weight.reshape(weight.shape[0], -1)
    rows, cols = matrix.shape[0] // block[0], matrix.shape[1] // block[1]
    norms = np.square(matrix).reshape(rows, block[0], cols, block[1]).sum(axis=(1, 3))
    keep = np.ones(norms.size, bool)
    keep[np.argsort(norms.ravel(), kind="stable")[: round(sparsity * norms.size)]] = False
    mask = np.kron(keep.reshape(norms.shape), np.ones(block, bool))
    return np.where(mask.reshape(weight.shape), weight, 0).astype(np.float32)


def prune_n_of_m(weight: np.ndarray, n: int, m: int) -> np.ndarray:
    """Keep the n largest of every m consecutive values of a row."""
    groups = np.abs(weight.reshape(-1, m))
    rank = np.argsort(np.argsort(-groups, axis=1, kind="stable"), axis=1, kind="stable")
    return np.where(rank < n, weight.reshape(-1, m), 0).reshape(weight.shape).astype(np.float32)


class ModelBuilder:
    """Builds one model. Every method that adds nodes returns the name of its output."""

    def __init__(self, name: str = "model", *, opset: int = 13, seed: int = 0) -> None:
        self.name = name
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self.functions: list[onnx.FunctionProto] = []
        self._count = 0

    # ---- the parts of a graph ----

    def fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def input(self, name: str, shape: Sequence[Dim] | None, elem_type: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, elem_type, shape))
        return name

    def const(self, data: np.ndarray | float | Sequence[int], stem: str = "c") -> str:
        """An initializer; Python floats become float32 scalars, lists of int int64."""
        array = np.float32(data) if isinstance(data, float) else np.asarray(data)
        name = self.fresh(stem)
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, op: str, *inputs: str, out: str | None = None, name: str | None = None, **attrs: object) -> str:
        """A node of one output."""
        out = out or self.fresh(op.lower())
        node = helper.make_node(op, list(inputs), [out], name=self.fresh(op) if name is None else name, **attrs)
        self.nodes.append(node)
        return out

    def output(self, *names: str) -> ModelBuilder:
        self.outputs.extend(names)
        return self

    def weight(
        self, shape: Sequence[int], fan_in: int, sparsity: float = 0.0, block: tuple[int, int] = (1, 1)
    ) -> np.ndarray:
        data = self.rng.standard_normal(shape) * math.sqrt(2.0 / (fan_in * max(1 - sparsity, 0.05)))
        return prune(data.astype(np.float32), sparsity, block)

    def vector(self, size: int, scale: float = 0.1, offset: float = 0.0) -> np.ndarray:
        return (offset + scale * self.rng.standard_normal(size)).astype(np.float32)

    def model(self) -> onnx.ModelProto:
        """The checked model; output shapes come from ONNX's shape inference."""
        outputs = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(d, 1) for d in dict.fromkeys(f.domain for f in self.functions)]
        ir_version = max(7, helper.find_min_ir_version_for(imports, ignore_unknown=True))
        model = helper.make_model(
            graph, opset_imports=imports, ir_version=max(8, ir_version) if self.functions else ir_version
        )
        model.functions.extend(self.functions)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        types = {info.name: info for info in [*inferred.graph.output, *inferred.graph.value_info]}
        for info in model.graph.output:
            info.CopyFrom(types[info.name])
            if not info.type.tensor_type.elem_type:
                info.type.tensor_type.elem_type = TensorProto.FLOAT
        return model

    def save(self, path: Path) -> Path:
        onnx.save(self.model(), path)
        return path

    # ---- layers ----

    def conv(
        self,
        x: str,
        channels_in: int,
        channels_out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        pad: int | None = None,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = True,
        sparsity: float = 0.0,
        **attrs: object,
    ) -> str:
        shape = (channels_out, channels_in // groups, kernel, kernel)
        inputs = [x, self.const(self.weight(shape, math.prod(shape[1:]), sparsity), "w")]
        if bias:
            inputs.append(self.const(self.vector(channels_out), "b"))
        if "auto_pad" not in attrs:
            attrs["pads"] = [kernel // 2 if pad is None else pad] * 4
        return self.op(
            "Conv",
            *inputs,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            dilations=[dilation, dilation],
            group=groups,
            **attrs,
        )

    def gemm(self, x: str, k: int, m: int, *, sparsity: float = 0.0, bias: bool = True, **attrs: object) -> str:
        inputs = [x, self.const(self.weight((m, k), k, sparsity), "w")]
        if bias:
            inputs.append(self.const(self.vector(m), "b"))
        return self.op("Gemm", *inputs, transB=1, **attrs)

    def linear(self, x: str, k: int, m: int, *, sparsity: float = 0.0, bias: bool = True) -> str:
        """MatMul and Add, as torch exports nn.Linear on 3-D inputs."""
        y = self.op("MatMul", x, self.const(np.ascontiguousarray(self.weight((m, k), k, sparsity).T), "w"))
        return self.op("Add", self.const(self.vector(m), "b"), y) if bias else y

    def batch_norm(self, x: str, channels: int, epsilon: float = 1e-5) -> str:
        scale, shift, mean = self.vector(channels, 0.2, 1.0), self.vector(channels), self.vector(channels)
        variance = np.abs(self.vector(channels, 0.3, 1.0)) + np.float32(0.1)
        constants = [self.const(array, "bn") for array in (scale, shift, mean, variance)]
        return self.op("BatchNormalization", x, *constants, epsilon=epsilon)

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def relu6(self, x: str) -> str:
        if self.opset < 11:
            return self.op("Clip", x, min=0.0, max=6.0)
        return self.op("Clip", x, self.const(0.0), self.const(6.0))

    def silu(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def hard_swish(self, x: str) -> str:
        """As torch exports it when it decomposes it; ONNX has the operator from opset 14 on."""
        six = self.const(6.0)
        clamped = self.op("Min", self.op("Max", self.op("Add", x, self.const(3.0)), self.const(0.0)), six)
        return self.op("Mul", x, self.op("Div", clamped, six))

    def gelu(self, x: str) -> str:
        """The erf form, as torch exports it below opset 20."""
        bent = self.op("Add", self.op("Erf", self.op("Div", x, self.const(math.sqrt(2.0)))), self.const(1.0))
        return self.op("Mul", self.op("Mul", x, bent), self.const(0.5))

    def gelu_tanh(self, x: str) -> str:
        cube = self.op("Mul", self.const(0.044715), self.op("Pow", x, self.const(3.0)))
        inner = self.op("Mul", self.op("Add", x, cube), self.const(math.sqrt(2.0 / math.pi)))
        bent = self.op("Add", self.const(1.0), self.op("Tanh", inner))
        return self.op("Mul", self.op("Mul", self.const(0.5), x), bent)

    def reduce_mean(self, x: str, axes: list[int], keepdims: int = 1) -> str:
        if self.opset >= 18:
            return self.op("ReduceMean", x, self.const(axes), keepdims=keepdims)
        return self.op("ReduceMean", x, axes=axes, keepdims=keepdims)

    def layer_norm(self, x: str, features: int, epsilon: float = 1e-5) -> str:
        """Decomposed, as torch exports it below opset 17."""
        centred = self.op("Sub", x, self.reduce_mean(x, [-1]))
        variance = self.reduce_mean(self.op("Pow", centred, self.const(2.0)), [-1])
        normal = self.op("Div", centred, self.op("Sqrt", self.op("Add", variance, self.const(epsilon))))
        scaled = self.op("Mul", normal, self.const(self.vector(features, 0.1, 1.0), "gamma"))
        return self.op("Add", scaled, self.const(self.vector(features), "beta"))

    def attention(
        self, x: str, batch: Dim, seq: Dim, hidden: int, heads: int, *, mask: str = "", sparsity: float = 0.0
    ) -> str:
        """Multi-head self-attention with its output projection, as torch exports BERT. Sizes may be symbolic."""
        depth = hidden // heads
        # 0 copies the dimension of the input.
        first, second = (size if isinstance(size, int) else 0 for size in (batch, seq))
        split, merge = self.const([first, second, heads, depth]), self.const([first, second, hidden])
        q, k, v = (self.op("Reshape", self.linear(x, hidden, hidden, sparsity=sparsity), split) for _ in range(3))
        q, v = (self.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 2, 3, 1]))
        scores = self.op("Div", scores, self.const(math.sqrt(depth)))
        if mask:
            scores = self.op("Add", scores, mask)
        context = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        context = self.op("Reshape", self.op("Transpose", context, perm=[0, 2, 1, 3]), merge)
        return self.linear(context, hidden, hidden, sparsity=sparsity)


# ---- whole models ----


def mlp(
    sizes: Sequence[int] = (20, 32, 24, 10), *, batch: Dim = 1, sparsity: float = 0.8, opset: int = 13, seed: int = 0
) -> ModelBuilder:
    """Gemm and Relu; input "x" (batch, sizes[0]), output "logits"."""
    builder = ModelBuilder("mlp", opset=opset, seed=seed)
    x = builder.input("x", (batch, sizes[0]))
    for k, m in itertools.pairwise(sizes[:-1]):
        x = builder.relu(builder.gemm(x, k, m, sparsity=sparsity))
    builder.gemm(x, sizes[-2], sizes[-1], sparsity=sparsity, out="logits")
    return builder.output("logits")


def conv_net(
    *, batch: Dim = 1, size: int = 12, width: int = 16, sparsity: float = 0.8, opset: int = 13, seed: int = 0
) -> ModelBuilder:
    """A residual network with BatchNormalization: 3x3, strided 3x3, 1x1, max pool, global average pool, classifier.

    Input "x" (batch, 3, size, size), output "logits" (batch, 10).
    """
    builder = ModelBuilder("conv_net", opset=opset, seed=seed)
    b = builder
    x = b.input("x", (batch, 3, size, size))
    x = b.relu(b.batch_norm(b.conv(x, 3, width, 3, bias=False), width))
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    y = b.relu(b.batch_norm(b.conv(x, width, width, 1, bias=False, sparsity=sparsity), width))
    y = b.relu(b.batch_norm(b.conv(y, width, width, 3, stride=2, bias=False, sparsity=sparsity), width))
    y = b.batch_norm(b.conv(y, width, 2 * width, 1, bias=False, sparsity=sparsity), 2 * width)
    skip = b.batch_norm(b.conv(x, width, 2 * width, 1, stride=2, bias=False, sparsity=sparsity), 2 * width)
    x = b.relu(b.op("Add", y, skip))
    x = b.relu(b.conv(x, 2 * width, 2 * width, 3, sparsity=sparsity, groups=2))
    x = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    b.gemm(x, 2 * width, 10, sparsity=sparsity, out="logits")
    return b.output("logits")


def shrinking_net(*, batch: Dim = 1, seed: int = 0) -> ModelBuilder:
    """A convolution at 12x12, then a residual block and a classifier at 3x3, whose weights outweigh its images.

    Input "x" (batch, 4, 12, 12), output of shape (batch, 5). A node at 12x12 has 6,912 bytes of tensors per sample.
    """
    b = ModelBuilder("shrinking", seed=seed)
    x = b.relu(b.conv(b.input("x", (batch, 4, 12, 12)), 4, 8))
    small = b.op("MaxPool", x, kernel_shape=[4, 4], strides=[4, 4], out="small")
    y = b.op("Add", b.conv(b.relu(b.conv(small, 8, 8, sparsity=0.5)), 8, 8, sparsity=0.5), small)
    y = b.op("Flatten", b.op("GlobalAveragePool", y), axis=1)
    return b.output(b.gemm(y, 8, 5))


def mobile_net(
    *, batch: Dim = 1, size: int = 12, width: int = 16, sparsity: float = 0.8, opset: int = 13, seed: int = 0
) -> ModelBuilder:
    """Depthwise 3x3 and pointwise 1x1 with ReLU6, one SiLU block, a mean over pixels and a classifier."""
    b = ModelBuilder("mobile_net", opset=opset, seed=seed)
    x = b.input("x", (batch, 3, size, size))
    x = b.relu6(b.conv(x, 3, width, 3, stride=2))
    x = b.relu6(b.batch_norm(b.conv(x, width, width, 3, groups=width, bias=False), width))
    x = b.relu6(b.conv(x, width, 2 * width, 1, sparsity=sparsity))
    x = b.silu(b.conv(x, 2 * width, 2 * width, 3, stride=2, groups=2 * width))
    x = b.conv(x, 2 * width, 2 * width, 1, sparsity=sparsity)
    b.gemm(b.reduce_mean(x, [2, 3], keepdims=0), 2 * width, 10, sparsity=sparsity, out="logits")
    return b.output("logits")


def bert(
    *,
    batch: Dim = 1,
    seq: Dim = 8,
    hidden: int = 32,
    heads: int = 4,
    layers: int = 1,
    sparsity: float = 0.8,
    opset: int = 13,
    seed: int = 0,
    tanh: bool = False,
) -> ModelBuilder:
    """An encoder with decomposed LayerNorm and GELU.

    Inputs "hidden_states" (batch, seq, hidden), "attention_bias" (batch, 1, 1, seq); output "last_hidden_state".
    """
    b = ModelBuilder("bert", opset=opset, seed=seed)
    x = b.input("hidden_states", (batch, seq, hidden))
    mask = b.input("attention_bias", (batch, 1, 1, seq))
    for _ in range(layers):
        attended = b.attention(x, batch, seq, hidden, heads, mask=mask, sparsity=sparsity)
        x = b.layer_norm(b.op("Add", attended, x), hidden)
        wide = b.linear(x, hidden, 2 * hidden, sparsity=sparsity)
        wide = b.gelu_tanh(wide) if tanh else b.gelu(wide)
        x = b.layer_norm(b.op("Add", b.linear(wide, 2 * hidden, hidden, sparsity=sparsity), x), hidden)
    b.op("Identity", x, out="last_hidden_state")
    return b.output("last_hidden_state")


# ---- running them ----


def random_inputs(model: onnx.ModelProto, seed: int = 0, batch: int = 1) -> dict[str, np.ndarray]:
    """Normal values for every input that is no initializer; symbolic dimensions become `batch`."""
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    arrays = {}
    for info in model.graph.input:
        if info.name not in constants:
            shape = [d.dim_value if d.HasField("dim_value") else batch for d in info.type.tensor_type.shape.dim]
            arrays[info.name] = rng.standard_normal(shape).astype(np.float32)
    return arrays


def run_onnxruntime(model: onnx.ModelProto | Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name, from onnxruntime on one thread without graph optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected||_2 / ||expected||_2."""
    difference = np.asarray(found, np.float64) - np.asarray(expected, np.float64)
    return float(np.linalg.norm(difference) / max(np.linalg.norm(np.asarray(expected, np.float64)), 1e-30))
