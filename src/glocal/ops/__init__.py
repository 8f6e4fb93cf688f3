"""torch's functions with faster implementations on CPUs: the same names, the same results, the fastest by timing.

    linear, Linear, pack              linear layers, and a model prepared for inference at a precision
    scaled_dot_product_attention      by matrix multiplications, or by a kernel in inference
    window_attention                  attention to neighbours alone, by blocks of queries
    mlp, glu, depthwise               parts of a block in fewer passes over memory
    dropout                           with a quarter of the random numbers
    cross_entropy, logsumexp, topk    over a vocabulary, in pieces

On GPUs, under torch.compile and on meta tensors each function is torch's own. See choice.py for how an implementation
is chosen, and kernels.cpp for the kernels.
"""

from glocal.ops.attention import scaled_dot_product_attention
from glocal.ops.blocks import activation_name, depthwise, glu, is_plain, mlp
from glocal.ops.choice import choices, keep_choices
from glocal.ops.elementwise import dropout
from glocal.ops.implementations import PRECISIONS, Precision
from glocal.ops.native import computes_bf16, kernels_state
from glocal.ops.products import Linear, fastest_precision, linear, pack
from glocal.ops.vocabulary import IGNORED, cross_entropy, cross_entropy_at_once, logsumexp, topk
from glocal.ops.window import window_attention, window_mask

__all__ = [
    "IGNORED",
    "PRECISIONS",
    "Linear",
    "Precision",
    "activation_name",
    "choices",
    "computes_bf16",
    "cross_entropy",
    "cross_entropy_at_once",
    "depthwise",
    "dropout",
    "fastest_precision",
    "glu",
    "is_plain",
    "keep_choices",
    "kernels_state",
    "linear",
    "logsumexp",
    "mlp",
    "pack",
    "scaled_dot_product_attention",
    "topk",
    "window_attention",
    "window_mask",
]
