"""Which operators a model may use: those that TVM's ONNX importer knows and that have static shapes.

The table is written down rather than asked from TVM, because importing TVM takes longer than loading a model; a test
compares it with the importer of the installed version.
"""

from __future__ import annotations

from collections.abc import Iterable

from sparsetvm.errors import ModelError, did_you_mean
from sparsetvm.frontend.names import display_name, display_names, words

SUPPORTED_OPS = words(
    """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
    BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos Cosh CumSum DepthToSpace Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax LpPool MatMul Max MaxPool MaxRoiPool MaxUnpool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow RMSNormalization Range Reciprocal
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    Relu Reshape Resize RoiAlign Round Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
    Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose
    Trilu Unsqueeze Upsample Where Xor
    """
)
# Not in TVM's table: written in the operators above by frontend/lower.py.
LOWERED_OPS = words("Celu LpNormalization RotaryEmbedding SwiGLU Swish")

# In TVM's table, but without a static tensor shape, or outside ONNX, or integer arithmetic.
DYNAMIC_OPS = words(
    """
    AllClassNMS Compress ConcatFromSequence NonMaxSuppression NonZero Optional OptionalGetElement OptionalHasElement
    SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence Unique
    """
)
CONTRIB_OPS = words("BiasGelu EmbedLayerNormalization FastGelu SkipLayerNormalization MatMulInteger16")
QUANTIZED_OPS = words(
    """
    ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear
    QAttention QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool
    QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax
    """
)


def is_supported(op: str, domain: str) -> bool:
    """True when a node of this operator can be compiled."""
    return domain == "" and (op in SUPPORTED_OPS or op in LOWERED_OPS)


def unsupported_error(nodes: Iterable[tuple[str, str, str]]) -> ModelError:
    """The error for (layer name, operator, domain) of every unsupported node; names each operator with its layers."""
    layers: dict[tuple[str, str], list[str]] = {}
    for name, op, domain in nodes:
        layers.setdefault((domain, op), []).append(name)
    quantized = {key: names for key, names in layers.items() if key[1] in QUANTIZED_OPS}
    what = "; ".join(_describe(*key, names) for key, names in (quantized or layers).items())
    if quantized:
        return ModelError(
            f"quantised models are not supported yet: {what}",
            hint="export the pruned model in float32",
        )
    op_domain, op = next(iter(layers))
    if op_domain:
        hint = "export the model with standard ONNX operators only, before any optimisation of ONNX Runtime"
    elif op in SUPPORTED_OPS:
        hint = "the opset that the model declares does not have this operator: export with a newer one"
    elif op in DYNAMIC_OPS:
        hint = "the output shape of this operator depends on data: cut it off the model, with onnx.utils.extract_model"
    elif op in ("If", "Loop", "Scan"):
        hint = "control flow is not supported: export the model by tracing, with fixed shapes"
    else:
        hint = f"export the model without this operator{did_you_mean(op, SUPPORTED_OPS)}"
    noun = "operator" if len(layers) == 1 else "operators"
    return ModelError(f"unsupported {noun}: {what}", hint=hint)


def _describe(domain: str, op: str, names: list[str]) -> str:
    shown = display_name(f"{domain}.{op}" if domain else op)
    return f"{shown} (layers: {display_names(names)})"
