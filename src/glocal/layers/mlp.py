"""The position-wise feed-forward network (Vaswani et al. 2017, section 3.3, equation 2)."""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from glocal import ops
from glocal.layers.config import Activation, BlockConfig
from glocal.layers.slicing import StateDict

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,  # Hendrycks and Gimpel 2016: BERT, ViT
    "gelu_tanh": partial(nn.GELU, "tanh"),  # its approximation in the same paper: GPT, as in its authors' code
    "relu": nn.ReLU,  # the Transformer
    "silu": nn.SiLU,  # Swish: GLiT as its paper writes it
}


class MLP(nn.Module):
    """W₂ act(W₁ x + b₁) + b₂, the same for every token; `hidden_dim` is the paper's d_ff."""

    def __init__(self, embed_dim: int, hidden_dim: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.fc1 = ops.Linear(embed_dim, hidden_dim)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = ops.Linear(hidden_dim, embed_dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Transform every token independently."""
        return ops.mlp(x, self.fc1, self.act, self.fc2)

    def slice_for(self, config: BlockConfig) -> StateDict:
        """Return the weights of a smaller MLP: the first hidden channels (see `slicing`)."""
        hidden = slice(config.hidden_dim)
        return {
            "fc1.weight": self.fc1.weight[hidden],
            "fc1.bias": self.fc1.bias[hidden],
            "fc2.weight": self.fc2.weight[:, hidden],
            "fc2.bias": self.fc2.bias,
        }
