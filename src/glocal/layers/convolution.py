"""A local head: a gated convolution over neighbouring tokens (Chen et al. 2021, GLiT, section 3.1)."""

from math import isqrt

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from glocal import ops
from glocal.errors import GlocalError
from glocal.layers.config import BlockConfig
from glocal.layers.slicing import StateDict, middle, named_tensors, slice_heads


class LocalConvolution(nn.Module):
    """pointwise to 2·E·C → GLU → depthwise over K tokens → BatchNorm → Swish → pointwise to C.

    This is Conformer's convolution module (Gulati et al. 2020, section 2.2). With `planar`, the depthwise convolution
    is K×K over the square grid of patches instead of K along the sequence, and leaves the class token as it is.

    Channels stay last in memory: the pointwise convolutions are matrix products, and the depthwise one takes the tokens
    as an image of one row of N pixels without a copy. (Never as one column: torch then mistakes the memory's order, and
    BatchNorm's gradient on a CPU is wrong.)
    """

    def __init__(self, dim: int, kernel_size: int = 31, expand_ratio: int = 1, planar: bool = False) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise GlocalError(f"kernel_size {kernel_size} of a local head; expected an odd number, which has a middle")
        hidden_dim = dim * expand_ratio
        self.planar = planar
        kernel = (kernel_size if planar else 1, kernel_size)
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.expand = ops.Linear(dim, 2 * hidden_dim)
        self.depthwise = nn.Conv2d(hidden_dim, hidden_dim, kernel, padding=padding, groups=hidden_dim)
        self.norm = nn.BatchNorm2d(hidden_dim)
        self.act = nn.SiLU()
        self.contract = ops.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Mix every token with its neighbours on both sides."""
        x = ops.glu(x, self.expand).mT  # (B, E·C, N), the channels still last in memory
        if self.planar:
            first, side = self.grid(x.shape[2])
            special, patches = x.split([first, side**2], dim=2)
            patches = ops.depthwise(patches.unflatten(2, (side, side)), self.depthwise).flatten(2)
            x = torch.cat([special, patches], dim=2).unsqueeze(2)
        else:
            x = ops.depthwise(x.unsqueeze(2), self.depthwise)  # (B, E·C, 1, N)
        x = self.act(self.norm(x))
        return self.contract(x.squeeze(2).mT)

    def weights(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens tokens"]:
        """Return the share of each token j in the output of each token i: ‖w(j - i) ⊙ g(j)‖; every row sums to one.

        g(j) is token j after the GLU, and w(j - i) the depthwise kernel at its distance from token i. Where channels
        are weighted one by one, the norm of a summand measures its share (Kobayashi et al. 2020, *Attention is Not Only
        a Weight*, https://arxiv.org/abs/2004.10102).
        """
        gated = F.glu(self.expand(x))
        kernel = self.depthwise.weight.flatten(1)  # (E·C, cells of the kernel)
        norms = (gated.square() @ kernel.square()).sqrt()  # (B, tokens j, cells): ‖w(cell) ⊙ g(j)‖

        cell, inside = self.kernel_cells(x.shape[1], x.device)
        position = torch.arange(x.shape[1], device=x.device)
        summands = norms[:, position, cell] * inside  # (B, tokens i, tokens j)

        first = self.grid(x.shape[1])[0] if self.planar else 0
        special = (position < first) | (position < first)[:, None]  # class tokens are left as they are
        shares = torch.where(special, torch.eye(len(position), device=x.device), summands)
        return shares / shares.sum(dim=-1, keepdim=True)

    def kernel_cells(
        self, tokens: int, device: torch.device
    ) -> tuple[Int[Tensor, "tokens tokens"], Bool[Tensor, "tokens tokens"]]:
        """Return which cell of the kernel token i applies to token j, and whether j lies within the kernel at all."""
        height, width = self.depthwise.weight.shape[2:]
        first, columns = self.grid(tokens) if self.planar else (0, tokens)
        position = torch.arange(tokens, device=device) - first
        row = position // columns
        column = position % columns
        down = row - row[:, None] + height // 2
        right = column - column[:, None] + width // 2
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < width)
        return torch.where(inside, down * width + right, 0), inside

    def grid(self, tokens: int) -> tuple[int, int]:
        """Return the number of tokens before the patches, and of patches along a side of their square."""
        side = isqrt(tokens)
        if tokens - side**2 > 2:  # more than a class and a distillation token
            raise GlocalError(f"{tokens} tokens hold no square grid of patches, which local conv2d needs")
        return tokens - side**2, side

    def slice_for(self, config: BlockConfig) -> StateDict:
        """Return the weights of fewer, narrower or shorter local heads (see `slicing`): of a kernel, the middle."""
        heads = slice(config.global_heads, config.num_heads)
        channels = slice(config.global_dim, config.embed_dim)

        def hidden(tensor: Tensor, axis: int = 0, parts: int = 1) -> Tensor:
            return slice_heads(tensor, axis, parts, config.num_heads, heads, config.head_dim * config.expand_ratio)

        tensors = named_tensors(self)
        height, width = (middle(size, config.kernel_size) for size in self.depthwise.weight.shape[2:])
        sliced = {
            "expand.weight": hidden(self.expand.weight, parts=2)[:, channels],
            "expand.bias": hidden(self.expand.bias, parts=2),
            "depthwise.weight": hidden(self.depthwise.weight)[:, :, height, width],
            "contract.weight": hidden(self.contract.weight, axis=1)[channels],
            "contract.bias": self.contract.bias[channels],
            "norm.num_batches_tracked": tensors["norm.num_batches_tracked"],
        }
        for name in ("depthwise.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
            sliced[name] = hidden(tensors[name])  # one value a hidden channel
        return sliced
