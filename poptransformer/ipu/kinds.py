# SPDX-License-Identifier: Apache-2.0
"""What the operators of a step graph ask of an IPU."""

# Not computed on an IPU: views of the same elements, and arithmetic on a few integers.
VIEWS = frozenset(
    ["Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Shape", "Constant", "ConstantOfShape", "Cast"]
    + ["CastLike", "Split", "Slice", "Expand", "Range", "Size"]
)
MOVES = frozenset(["Concat", "Transpose", "Pad", "Tile", "TensorScatter", "ScatterND", "ScatterElements"])
LOOKUPS = frozenset(["Gather", "GatherND", "GatherElements", "QuantizedEmbedding"])
PRODUCTS = frozenset(["MatMul", "Linear", "QuantizedLinear"])
ATTENTIONS = frozenset(["CachedAttention", "RotaryCachedAttention"])
COLLECTIVES = {"AllReduce": "all_reduce", "AllGather": "all_gather"}
# Passes over the elements, and reductions that tiles exchange; what is not here takes one pass.
VECTORS = {
    "LayerNormalization": (3, 2),
    "RMSNormalization": (2, 1),
    "Softmax": (4, 2),
    "ReduceMean": (1, 1),
    "ReduceSum": (1, 1),
    "ReduceMax": (1, 1),
    "Gelu": (4, 0),
    "Swish": (3, 0),
    "Sigmoid": (3, 0),
    "Tanh": (3, 0),
    "Exp": (3, 0),
    "Erf": (3, 0),
    "RotaryEmbedding": (2, 0),
    "RoundToFloat8": (2, 1),
}
