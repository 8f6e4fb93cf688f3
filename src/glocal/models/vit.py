"""ViT: an image is worth 16×16 words; and DeiT, its data-efficient training.

    Dosovitskiy et al. 2020, *An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale*
    https://arxiv.org/abs/2010.11929
    Touvron et al. 2021, *Training data-efficient image transformers & distillation through attention*
    https://arxiv.org/abs/2012.12877

Three parts, in the order of the paper's section 3.1: flattened patches are projected to tokens, a Transformer encoder
refines them, a head reads the class token.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.layers.block import Block, BlockConfig, stack
from glocal.layers.embeddings import ConvStem, PatchEmbedding
from glocal.layers.heads import ClassificationHead
from glocal.layers.positions import resize_positions
from glocal.models.baseline import FeatureMap
from glocal.models.folders import State
from glocal.models.pretrained import Model, check_images


@dataclass(frozen=True)
class ViTConfig:
    """An architecture. The defaults are ViT-Base/16 at 224² (Dosovitskiy et al. 2020, table 1)."""

    image_size: tuple[int, int] = (224, 224)
    """Height and width H, W in pixels."""
    in_chans: int = 3
    """Channels C: 3 for colour, 1 for grey."""
    num_classes: int = 1000
    """Logits an image gets; with 0 it gets what the head would read: this is an encoder without a classifier."""
    stem: str = "pixels"
    """What is cut into patches: `pixels`, `conv:S` (convolutions of stride S), or `timm:NAME` (a CNN's map)."""
    patch_size: int = 16
    """Side P of a patch, in pixels or in cells of the stem's feature map."""
    positions: bool = True
    """Whether learned position embeddings are added; without them the model sees a bag of patches."""
    blocks: tuple[BlockConfig, ...] = stack(12)
    """The encoder."""
    pool: Literal["token", "mean"] = "token"
    """What the head reads: the class token, or the mean of all tokens (then there is no class token)."""
    distilled: bool = False
    """Whether a distillation token and its head stand beside the class token's (Touvron et al. 2021, section 4)."""


def _vit(embed_dim: int, depth: int, num_heads: int, patch_size: int = 16, **fields: Any) -> ViTConfig:
    return ViTConfig(patch_size=patch_size, blocks=stack(depth, embed_dim=embed_dim, num_heads=num_heads), **fields)


#                                D   depth heads P
NAMED = {
    "vit-tiny":        _vit(   192,  12,   3, 16),  # Touvron et al. 2021, table 1: D, depth and heads of DeiT-Ti
    "vit-small":       _vit(   384,  12,   6, 16),
    "vit-small-32":    _vit(   384,  12,   6, 32),
    "vit-base":        _vit(   768,  12,  12, 16),  # Dosovitskiy et al. 2020, table 1
    "vit-base-8":      _vit(   768,  12,  12,  8),
    "vit-base-32":     _vit(   768,  12,  12, 32),
    "vit-large":       _vit(  1024,  24,  16, 16),
    "vit-large-32":    _vit(  1024,  24,  16, 32),
    "vit-huge":        _vit(  1280,  32,  16, 14),
    "vit-base-r26":    _vit(   768,  12,  12,  1, stem="timm:resnet26d"),  # hybrid: patches of a CNN's feature map
    "vit-base-r50":    _vit(   768,  12,  12,  1, stem="timm:resnet50d"),
    "deit-tiny":       _vit(   192,  12,   3, 16),  # Touvron et al. 2021, table 1
    "deit-small":      _vit(   384,  12,   6, 16),
    "deit-base":       _vit(   768,  12,  12, 16),
    "deit-tiny-distilled":  _vit(192, 12, 3, 16, distilled=True),
    "deit-small-distilled": _vit(384, 12, 6, 16, distilled=True),
    "deit-base-distilled":  _vit(768, 12, 12, 16, distilled=True),
}  # fmt: skip


class ViT(Model):
    """Patches → tokens → encoder → head.

    | part                     | shape             | initialised                         |
    | ------------------------ | ----------------- | ----------------------------------- |
    | linear weights           | (out, in)         | normal, σ = 1/√in, cut at 2σ        |
    | biases                   | (out,)            | 0                                   |
    | prefix tokens            | (1, 1 or 2, D)    | normal, σ = 0.02                    |
    | positions                | (1, prefix + N, D)| normal, σ = 0.02                    |
    | the head                 | (classes, D)      | 0, so that training starts at log K |

    σ follows the width, as in the authors' code; DeiT's fixed 0.02 suits D = 768 and starves a model of D = 64.
    """

    family = "vit"
    Config = ViTConfig
    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        if config.distilled and config.pool != "token":
            raise GlocalError("a distilled model reads its class and distillation tokens; its pool is 'token'")
        dim = config.blocks[0].embed_dim
        if any(block.cross or block.embed_dim != dim for block in config.blocks):
            raise GlocalError("a ViT's blocks have cross false and one embed_dim: set them so")
        self.stem, chans, stride = build_stem(config)
        self.patches = PatchEmbedding(chans, config.patch_size, dim)
        self.grid = patch_grid(config.image_size, stride * config.patch_size)
        self.num_prefix_tokens = (config.pool == "token") + config.distilled
        tokens = self.num_prefix_tokens + prod(self.grid)
        prefix = nn.Parameter(torch.zeros(1, self.num_prefix_tokens, dim))  # class token, distillation token
        self.prefix = prefix if self.num_prefix_tokens else None
        self.positions = nn.Parameter(torch.zeros(1, tokens, dim)) if config.positions else None
        self.blocks = nn.Sequential(*(Block(block) for block in config.blocks))
        self.norm = nn.LayerNorm(dim, config.blocks[-1].norm_eps)
        self.head = ClassificationHead(dim, config.num_classes, config.pool, config.distilled)
        self.init_weights()
        self.preprocessing = {
            "image_size": config.image_size,
            "channels": config.in_chans,
            "mean": (0.5,) * config.in_chans,  # -1 to 1, as in the authors' code
            "std": (0.5,) * config.in_chans,
            "crop_mode": "squash",
        }

    def forward(self, pixel_values: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch classes"]:
        """Logits; a distilled model answers with the mean of its two heads (Touvron et al. 2021, section 4)."""
        return self.forward_heads(pixel_values).mean(dim=1)

    def forward_heads(
        self, pixel_values: Float[Tensor, "batch chans height width"]
    ) -> Float[Tensor, "batch heads classes"]:
        """Logits of each head: one, or two where the model is distilled."""
        return self.head(self.encode(pixel_values, keep=self.num_prefix_tokens or None))

    def forward_features(
        self, pixel_values: Float[Tensor, "batch chans height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Refined tokens: prefix tokens first, then the patches row by row."""
        return self.encode(pixel_values)

    def encode(self, pixel_values: Tensor, keep: int | None = None) -> Tensor:
        """The same, or the first `keep` tokens: the last block need not work for tokens that no head reads."""
        x = self.embed(pixel_values)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)  # equations 2 and 3
        x = last(x, num_queries=keep)
        return self.norm(x)  # equation 4

    def embed(self, pixel_values: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Patches, with prefix tokens in front and positions added: what the blocks refine."""
        check_images(self, pixel_values)
        expected = (self.config.in_chans, *self.config.image_size)
        if pixel_values.shape[1:] != expected:
            given = "×".join(map(str, pixel_values.shape[1:]))
            raise GlocalError(
                f"images of {given}; this model takes C×H×W = {'×'.join(map(str, expected))}: resize them, or load it "
                "with another image_size"
            )
        x = self.patches(self.stem(pixel_values))  # (B, N, D), equation 1
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)
        if self.positions is not None:
            x = x + self.positions
        return x

    def init_weights(self) -> None:
        """Draw the table above."""
        self.init_linears(self)
        for parameter in (self.prefix, self.positions):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    @staticmethod
    def init_linears(part: nn.Module) -> None:
        """Draw the linear layers of the model or of a part."""
        for module in part.modules():
            if isinstance(module, nn.Linear):
                std = module.in_features**-0.5
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that are embeddings, which decay would pull to nothing."""
        return {"prefix", "positions"}

    def adapt_state(self, state: State, source: ViTConfig) -> State:
        """Make another ViT's weights fit this one's resolution: its positions, resized in 2-D (section 3.2)."""
        if "positions" not in state or source.image_size == self.config.image_size:
            return state
        _, _, stride = build_stem(source)
        grid = patch_grid(source.image_size, stride * source.patch_size)
        positions = resize_positions(state["positions"], grid, self.grid, self.num_prefix_tokens)
        return state | {"positions": positions}


def build_stem(config: ViTConfig) -> tuple[nn.Module, int, int]:
    """Return what stands before the patches, the channels it gives, and the pixels a cell of its map spans."""
    kind, _, value = config.stem.partition(":")
    match kind:
        case "pixels" if not value:
            return nn.Identity(), config.in_chans, 1
        case "conv" if value.isdecimal():
            dim = config.blocks[0].embed_dim
            return ConvStem(config.in_chans, dim, int(value)), dim, int(value)
        case "timm":
            features = FeatureMap(value, config.in_chans)
            return features, features.chans, features.stride
    raise GlocalError(f"stem {config.stem!r} is none of pixels, conv:STRIDE, timm:NAME")


def patch_grid(image_size: tuple[int, int], cell: int) -> tuple[int, int]:
    """Rows and columns of patches, N = HW/P² of them (section 3.1)."""
    height, width = image_size
    if height % cell or width % cell:
        raise GlocalError(
            f"image size {height}×{width} is not divisible by patches of {cell} pixels; "
            f"{-(-height // cell) * cell}×{-(-width // cell) * cell} is"
        )
    return height // cell, width // cell
