"""What a network draws in training: numbers, or whole branches, that are left out."""

from jaxtyping import Float
from torch import Tensor, nn

from glocal import ops


class Dropout(nn.Dropout):
    """In training, each number is lost with probability `p`, the rest scale up (Srivastava et al. 2014)."""

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Zero some numbers, so that the expectation stays what it was."""
        return ops.dropout(input, self.p) if self.training else input


class DropPath(nn.Module):
    """Stochastic depth: in training, each example loses the branch with probability `rate`, the rest scale up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """Zero whole examples, so that the expectation stays what it was."""
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep.div_(1 - self.rate)
