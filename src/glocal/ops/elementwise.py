"""`F.dropout` with fewer random numbers: each of 64 bits is used as four of 16 bits."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from glocal.ops.choice import PLAIN, choose, dtype_name, size_class
from glocal.ops.products import eager_cpu

LARGEST_TIMED = 2**20
"""Most numbers of an operation that is timed at its own size."""


def dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Zero each number with probability `p` and scale the rest by 1/(1 - p) (Srivastava et al. 2014).

    With 16 bits, `p` is rounded to a multiple of 1/65536.
    """
    if p == 0.0 or p >= 1.0 or not eager_cpu(x) or not _sixteen_bits_pay(x):
        return F.dropout(x, p)
    return x * dropout_mask(x.shape, p, x.dtype)


def dropout_mask(shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
    """Return 0 with probability `p`, else 1/(1 - p)."""
    count = math.prod(shape)
    lost = round(p * 2**16)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[:count].view(shape) >= lost - 2**15
    return kept.to(dtype).mul_(1 / (1 - lost / 2**16))


def _sixteen_bits_pay(x: Tensor) -> bool:
    count = min(size_class(x.numel()), LARGEST_TIMED)

    def candidates() -> dict[str, Callable[[], object]]:
        some = torch.ones(count, dtype=x.dtype)
        return {
            PLAIN: lambda: F.dropout(some, 0.1),
            "16 bits": lambda: some * dropout_mask(some.shape, 0.1, some.dtype),
        }

    return choose(("dropout", dtype_name(x.dtype), count), candidates) == "16 bits"
