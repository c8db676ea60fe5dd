"""Which operators a float inference graph of vision or language models uses: the scope of the conformance table."""

from __future__ import annotations

OPERATORS = {
    "products": "Conv ConvTranspose Einsum Gemm MatMul",
    "pools": "AveragePool GlobalAveragePool GlobalMaxPool LpPool MaxPool",
    "norms": "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization LpNormalization LRN "
    "MeanVarianceNormalization RMSNormalization",
    "attention": "Attention RotaryEmbedding",
    "activations": "Celu Clip Elu Gelu HardSigmoid HardSwish Hardmax LeakyRelu LogSoftmax Mish PRelu Relu Selu Shrink "
    "Sigmoid Softmax Softplus Softsign SwiGLU Swish Tanh ThresholdedRelu",
    "element-wise": "Abs Acos Acosh Add Asin Asinh Atan Atanh Ceil Cos Cosh Div Dropout Erf Exp Floor Identity Log Max "
    "Mean Min Mod Mul Neg Pow Reciprocal Round Sign Sin Sinh Sqrt Sub Sum Tan",
    "comparisons": "And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Where Xor",
    "reductions": "ArgMax ArgMin CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum ReduceSumSquare TopK",
    "shapes": "Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Pad Range Reshape "
    "Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze",
    "gathers": "Gather GatherElements GatherND GridSample OneHot ScatterElements ScatterND",
    "images": "AffineGrid Resize RoiAlign Upsample",
    "types": "Cast CastLike",
}
GROUP_OF = {operator: group for group, operators in OPERATORS.items() for operator in operators.split()}
