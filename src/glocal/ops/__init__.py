"""torch's functions with faster paths on CPUs: the same names, the same results, the path chosen by timing.

    linear, Linear, pack              products with weights, and a model prepared for inference at a precision
    scaled_dot_product_attention      by products of matrices, or by a kernel for decoding
    mlp, glu, depthwise               parts of a block in fewer passes over memory
    dropout                           with a quarter of the random numbers
    cross_entropy, logsumexp, topk    over a vocabulary, in pieces

On GPUs, under torch.compile and on meta tensors each function is torch's own. See choice.py for how a path is chosen
and kernels.cpp for the kernels.
"""

from glocal.ops.attention import scaled_dot_product_attention
from glocal.ops.blocks import depthwise, glu, mlp
from glocal.ops.choice import choices
from glocal.ops.dropout import dropout
from glocal.ops.linear import PRECISIONS, Linear, Precision, fastest_precision, linear, pack
from glocal.ops.vocabulary import IGNORED, cross_entropy, logsumexp, token_losses, topk

__all__ = [
    "IGNORED",
    "PRECISIONS",
    "Linear",
    "Precision",
    "choices",
    "cross_entropy",
    "depthwise",
    "dropout",
    "fastest_precision",
    "glu",
    "linear",
    "logsumexp",
    "mlp",
    "pack",
    "scaled_dot_product_attention",
    "token_losses",
    "topk",
]
