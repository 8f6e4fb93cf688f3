"""Dropout of numbers, and of whole residual branches."""

from jaxtyping import Float
from torch import Tensor, nn

from glocal import ops


class Dropout(nn.Dropout):
    """In training, each number is zeroed with probability `p`, the rest scaled by 1/(1-p) (Srivastava et al. 2014)."""

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the input with some numbers zeroed; the expectation is the input's."""
        return ops.dropout(input, self.p) if self.training else input


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, an example's branch is zeroed with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """Return the branch with some examples zeroed and the rest scaled by 1/(1-rate)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep.div_(1 - self.rate)
