"""A local head: a gated convolution over neighbouring tokens (Chen et al. 2021, GLiT, section 3.1)."""

from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from glocal import ops
from glocal.errors import GlocalError


class LocalConvolution(nn.Module):
    """pointwise to 2·E·C → GLU → depthwise over K tokens → BatchNorm → Swish → pointwise to C.

    It is Conformer's convolution module (Gulati et al. 2020, section 2.2). With `planar`, the depthwise convolution is
    K×K over the patches' square grid instead of K along the sequence, and leaves the class token to itself.

    Channels stay last in memory: the pointwise convolutions are matrix products, and the depthwise one takes the tokens
    as an image of one row of N pixels without a copy. (Never as one column: torch then mistakes the memory's order, and
    BatchNorm's gradient on a CPU is wrong.)
    """

    def __init__(self, dim: int, kernel_size: int = 31, expand_ratio: int = 1, planar: bool = False) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise GlocalError(f"kernel_size {kernel_size} of a local head; expected an odd number, which has a middle")
        hidden_dim, self.planar = dim * expand_ratio, planar
        kernel = (kernel_size if planar else 1, kernel_size)
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.expand = ops.Linear(dim, 2 * hidden_dim)
        self.depthwise = nn.Conv2d(hidden_dim, hidden_dim, kernel, padding=padding, groups=hidden_dim)
        self.norm = nn.BatchNorm2d(hidden_dim)
        self.act = nn.SiLU()
        self.contract = ops.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Mix every token with its neighbours; the kernel looks to both sides."""
        x = ops.glu(x, self.expand).mT  # (B, E·C, N), the channels still last in memory
        if self.planar:
            first, side = self.grid(x.shape[2])
            prefix, patches = x.split([first, side**2], dim=2)
            patches = ops.depthwise(patches.unflatten(2, (side, side)), self.depthwise).flatten(2)
            x = torch.cat([prefix, patches], dim=2).unsqueeze(2)
        else:
            x = ops.depthwise(x.unsqueeze(2), self.depthwise)  # (B, E·C, 1, N)
        x = self.act(self.norm(x))
        return self.contract(x.squeeze(2).mT)

    def weights(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens tokens"]:
        """Return how much each token takes from each, to be looked at: ‖w(j - i) ⊙ g(j)‖; every row sums to one.

        g(j) is what GLU lets through of token j, and w(j - i) the depthwise kernel at its distance from token i. Where
        channels are weighed one by one, the norm of what is added tells how much it matters (Kobayashi et al. 2020,
        *Attention is Not Only a Weight*, https://arxiv.org/abs/2004.10102).
        """
        let_through, kernel = F.glu(self.expand(x)), self.depthwise.weight
        norms = (let_through.square() @ kernel.square().flatten(1)).sqrt()  # of token j at each distance
        (height, width), place = kernel.shape[2:], torch.arange(x.shape[1], device=x.device)
        first, side = self.grid(x.shape[1]) if self.planar else (0, x.shape[1])
        down, right = ((at - at[:, None]) for at in ((place - first) // side, (place - first) % side))
        near = (down.abs() <= height // 2) & (right.abs() <= width // 2)
        distance = torch.where(near, (down + height // 2) * width + right + width // 2, 0)
        alone = (place < first) | (place < first)[:, None]
        taken = torch.where(alone, torch.eye(len(place), device=x.device), norms[:, place, distance] * near)
        return taken / taken.sum(dim=-1, keepdim=True)

    def grid(self, tokens: int) -> tuple[int, int]:
        """Tokens before the patches, and patches along a side of their square."""
        side = isqrt(tokens)
        if tokens - side**2 > 2:  # more than a class and a distillation token
            raise GlocalError(f"{tokens} tokens hold no square grid of patches, which local conv2d needs")
        return tokens - side**2, side
