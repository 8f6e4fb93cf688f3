"""A local head: a gated convolution over neighbouring tokens (Chen et al. 2021, GLiT, section 3.1)."""

from math import isqrt

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from glocal import ops
from glocal.errors import GlocalError
from glocal.layers.cache import LastTokens
from glocal.layers.config import BlockConfig, LocalNorm
from glocal.layers.slicing import StateDict, last, middle, named_tensors, slice_heads


class LocalConvolution(nn.Module):
    """pointwise to 2·E·C → GLU → depthwise over K tokens → norm → Swish → pointwise to C.

    This is Conformer's convolution module (Gulati et al. 2020, section 2.2), whose norm is BatchNorm. With `norm`
    "layer" it is a LayerNorm over the channels of each token, so that a token depends on those in its kernel alone.

    The kernel reads the tokens around a token, K odd; if `causal`, the last K up to it, as Lite Transformer's decoder
    (Wu et al. 2020, section 4). With `planar`, it is K×K over the square grid of patches instead, and leaves the class
    token as it is.

    Channels stay last in memory: the pointwise convolutions are matrix products, and the depthwise one takes the tokens
    as an image of one row of N pixels without a copy. (Never as one column: torch then mistakes the memory's order, and
    BatchNorm's gradient on a CPU is wrong.)

    Raises GlocalError for an even K that needs a middle, and for `causal` with a norm or a grid that has no order.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 31,
        expand_ratio: int = 1,
        planar: bool = False,
        norm: LocalNorm = "batch",
        causal: bool = False,
    ) -> None:
        super().__init__()
        check_local(kernel_size, planar, norm, causal)
        hidden_dim = dim * expand_ratio
        self.planar = planar
        self.causal = causal
        kernel = (kernel_size if planar else 1, kernel_size)
        padding = (0, 0) if causal else (kernel[0] // 2, kernel[1] // 2)  # of a causal one, `forward` adds it in front
        self.expand = ops.Linear(dim, 2 * hidden_dim)
        self.depthwise = nn.Conv2d(hidden_dim, hidden_dim, kernel, padding=padding, groups=hidden_dim)
        self.norm: nn.Module = nn.BatchNorm2d(hidden_dim) if norm == "batch" else nn.LayerNorm(hidden_dim)
        self.act = nn.SiLU()
        self.contract = ops.Linear(hidden_dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "#batch 1 1 tokens"] | None = None,
        cache: LastTokens | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix every token with its neighbours; neighbours that the mask leaves out, or beyond the ends, are zero.

        With a `cache`, which a causal layer has, the tokens of `x` come after the tokens in the cache and are added to
        it. Raises GlocalError for a mask where the layer cannot leave tokens out.
        """
        x = ops.glu(x, self.expand)  # (B, N, E·C)
        if mask is not None:
            self.check_mask()
            x = x.masked_fill(~mask[:, 0, 0, :, None], 0.0)
        if cache is not None:
            x = cache.append(x).to(x.dtype)
        elif self.causal:
            x = F.pad(x, (0, 0, self.depthwise.kernel_size[1] - 1, 0))
        x = self.convolve(x.mT)  # the channels still last in memory
        if isinstance(self.norm, nn.LayerNorm):
            return self.contract(self.act(self.norm(x.squeeze(2).mT)))
        x = self.act(self.norm(x))
        return self.contract(x.squeeze(2).mT)

    def convolve(self, x: Float[Tensor, "batch hidden tokens"]) -> Float[Tensor, "batch hidden 1 outputs"]:
        """Return the depthwise convolution of a row of tokens, or of their grid."""
        if not self.planar:
            return ops.depthwise(x.unsqueeze(2), self.depthwise)
        first, side = self.grid(x.shape[2])
        special, patches = x.split([first, side**2], dim=2)
        patches = ops.depthwise(patches.unflatten(2, (side, side)), self.depthwise).flatten(2)
        return torch.cat([special, patches], dim=2).unsqueeze(2)

    def check_mask(self) -> None:
        """Raise GlocalError if padding would be read in spite of a mask."""
        if self.planar:
            raise GlocalError("a mask on local heads 'conv2d', whose grid has no padding; give local 'conv1d'")
        if not isinstance(self.norm, nn.LayerNorm):
            raise GlocalError(
                "a mask on local heads with local_norm 'batch', whose statistics would include padding; set "
                "local_norm 'layer', or give inputs of one length, unpadded"
            )

    def new_cache(self, rows: int) -> LastTokens:
        """Return an empty cache of the hidden channels of the last K - 1 tokens of each row.

        Raises GlocalError if the layer is not causal.
        """
        if not self.causal:
            raise GlocalError("local heads that read later tokens keep no cache; make the block causal")
        weight = self.depthwise.weight
        return LastTokens.zeros(weight, rows, weight.shape[3] - 1, len(weight))

    def weights(
        self, x: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "#batch 1 1 tokens"] | None = None
    ) -> Float[Tensor, "batch tokens tokens"]:
        """Return the share of each token j in the output of each token i: ‖w(j - i) ⊙ g(j)‖; every row sums to one.

        A token that the mask leaves out has no share in the outputs of other tokens, and a share of 1 in its own
        output. g(j) is token j after the GLU, and w(j - i) the depthwise kernel at its distance from token i. Where
        channels are weighted one by one, the norm of a summand measures its share (Kobayashi et al. 2020, *Attention
        is Not Only a Weight*, https://arxiv.org/abs/2004.10102).
        """
        gated = F.glu(self.expand(x))
        kernel = self.depthwise.weight.flatten(1)  # (E·C, cells of the kernel)
        norms = (gated.square() @ kernel.square()).sqrt()  # (B, tokens j, cells): ‖w(cell) ⊙ g(j)‖

        cell, inside = self.kernel_cells(x.shape[1], x.device)
        position = torch.arange(x.shape[1], device=x.device)
        summands = norms[:, position, cell] * inside  # (B, tokens i, tokens j)

        first = self.grid(x.shape[1])[0] if self.planar else 0
        alone = (position < first)[None] if mask is None else ~mask[:, 0, 0]  # class tokens are left as they are
        apart = alone[:, None] | alone[:, :, None]
        shares = torch.where(apart, torch.eye(len(position), device=x.device), summands)
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
        right = column - column[:, None] + (width - 1 if self.causal else width // 2)
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < width)
        return torch.where(inside, down * width + right, 0), inside

    def grid(self, tokens: int) -> tuple[int, int]:
        """Return the number of tokens before the patches, and of patches along a side of their square."""
        side = isqrt(tokens)
        if tokens - side**2 > 2:  # more than a class and a distillation token
            raise GlocalError(f"{tokens} tokens hold no square grid of patches, which local conv2d needs")
        return tokens - side**2, side

    def slice_for(self, config: BlockConfig) -> StateDict:
        """Return the weights of fewer, narrower or shorter local heads (see `slicing`).

        Of a kernel the middle remains or, if it is causal, the end, which reads the nearest tokens.
        """
        heads = slice(config.global_heads, config.num_heads)
        channels = slice(config.global_dim, config.embed_dim)

        def hidden(tensor: Tensor, axis: int = 0, parts: int = 1) -> Tensor:
            return slice_heads(tensor, axis, parts, config.num_heads, heads, config.head_dim * config.expand_ratio)

        part = last if self.causal else middle
        height, width = (part(size, config.kernel_size) for size in self.depthwise.weight.shape[2:])
        sliced = {
            "expand.weight": hidden(self.expand.weight, parts=2)[:, channels],
            "expand.bias": hidden(self.expand.bias, parts=2),
            "depthwise.weight": hidden(self.depthwise.weight)[:, :, height, width],
            "contract.weight": hidden(self.contract.weight, axis=1)[channels],
            "contract.bias": self.contract.bias[channels],
        }
        for name, tensor in named_tensors(self).items():  # the bias of the kernel, and the norm: one value per channel
            if name not in sliced:
                sliced[name] = hidden(tensor) if tensor.ndim else tensor
        return sliced


def check_local(kernel_size: int, planar: bool, norm: LocalNorm, causal: bool) -> None:
    """Raise GlocalError if the arguments describe no local head."""
    if kernel_size < 1 or (kernel_size % 2 == 0 and not causal):
        raise GlocalError(f"kernel_size {kernel_size} of a local head; expected an odd number, which has a middle")
    if causal and planar:
        raise GlocalError("local heads 'conv2d' in a causal block; a grid of patches has no order: give local 'conv1d'")
    if causal and norm == "batch":
        raise GlocalError(
            "local heads with local_norm 'batch' in a causal block, where statistics of the batch would include later "
            "tokens; set local_norm 'layer'"
        )
