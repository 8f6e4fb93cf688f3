"""ViT, a Transformer over patches of an image, and DeiT, the same model with an optional distillation token.

    Dosovitskiy et al. 2020, *An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale*
    https://arxiv.org/abs/2010.11929
    Touvron et al. 2021, *Training data-efficient image transformers & distillation through attention*
    https://arxiv.org/abs/2012.12877

The code follows section 3.1 of the first paper, in its order: flattened patches are projected to tokens, a Transformer
encoder processes them, and a head classifies the class token.
"""

from dataclasses import dataclass
from math import ceil, prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.layers.block import Block, BlockConfig, uniform_blocks
from glocal.layers.embeddings import PatchEmbedding
from glocal.layers.encoder import BlockList
from glocal.layers.heads import ClassificationHead
from glocal.layers.positions import resize_positions
from glocal.layers.slicing import StateDict
from glocal.models.base import Model, check_images
from glocal.models.stem import StemConfig, build_stem


@dataclass(frozen=True)
class ViTConfig:
    """An architecture. The defaults are ViT-Base/16 at 224² (Dosovitskiy et al. 2020, table 1)."""

    image_size: tuple[int, int] = (224, 224)
    """Height and width H, W in pixels."""
    in_chans: int = 3
    """Channels C: 3 for colour, 1 for grey."""
    num_classes: int = 1000
    """Number of classes. 0: no head; the model returns the pooled features (timm's convention)."""
    stem: StemConfig = StemConfig()
    """Layers before the patches, if any."""
    patch_size: int = 16
    """Side P of a patch: in pixels, or, with a stem, in cells of the stem's feature map."""
    positions: bool = True
    """Whether learned position embeddings are added; without them, global heads ignore the order of the patches."""
    blocks: tuple[BlockConfig, ...] = uniform_blocks(12)
    """The encoder."""
    pool: Literal["token", "mean"] = "token"
    """Input of the head: the class token, or the mean of all tokens; the model then has no class token."""
    distilled: bool = False
    """Whether there are a distillation token and a classifier for it (Touvron et al. 2021, section 4)."""


def _vit(embed_dim: int, depth: int, num_heads: int, patch_size: int = 16, **fields: Any) -> ViTConfig:
    blocks = uniform_blocks(depth, embed_dim=embed_dim, num_heads=num_heads)
    return ViTConfig(patch_size=patch_size, blocks=blocks, **fields)


def _cnn(name: str) -> StemConfig:
    return StemConfig("timm", name=name)


# DeiT changed the training and added the distillation token: vit-tiny, vit-small and vit-base are the architectures of
# deit-tiny, deit-small and deit-base.
#                                D   depth heads P
NAMED_CONFIGS = {
    "vit-tiny":        _vit(   192,  12,   3, 16),  # Touvron et al. 2021, table 1: DeiT-Ti and DeiT-S
    "vit-small":       _vit(   384,  12,   6, 16),
    "vit-small-32":    _vit(   384,  12,   6, 32),
    "vit-base":        _vit(   768,  12,  12, 16),  # Dosovitskiy et al. 2020, table 1
    "vit-base-8":      _vit(   768,  12,  12,  8),
    "vit-base-32":     _vit(   768,  12,  12, 32),
    "vit-large":       _vit(  1024,  24,  16, 16),
    "vit-large-32":    _vit(  1024,  24,  16, 32),
    "vit-huge":        _vit(  1280,  32,  16, 14),
    "vit-base-r26":    _vit(   768,  12,  12,  1, stem=_cnn("resnet26d")),  # hybrid: patches of a CNN's feature map
    "vit-base-r50":    _vit(   768,  12,  12,  1, stem=_cnn("resnet50d")),
    "deit-tiny":       _vit(   192,  12,   3, 16),  # Touvron et al. 2021, table 1
    "deit-small":      _vit(   384,  12,   6, 16),
    "deit-base":       _vit(   768,  12,  12, 16),
    "deit-tiny-distilled":  _vit(192, 12, 3, 16, distilled=True),
    "deit-small-distilled": _vit(384, 12, 6, 16, distilled=True),
    "deit-base-distilled":  _vit(768, 12, 12, 16, distilled=True),
}  # fmt: skip


class ViT(Model):
    """Patches → tokens → encoder → head. In the shapes, N is the number of patches, K the
    number of classes, and prefix the number of class and distillation tokens.

    | part                     | shape               | initialised                         |
    | ------------------------ | ------------------- | ----------------------------------- |
    | linear weights           | (out, in)           | LeCun normal: σ = 1/√in, cut at 2σ  |
    | biases                   | (out,)              | 0                                   |
    | cls_token, dist_token    | (1, 1, D)           | normal, σ = 0.02                    |
    | pos_embed                | (1, N + prefix, D)  | normal, σ = 0.02                    |
    | the head                 | (K, D)              | 0, so that the first loss is log K  |

    DeiT's fixed σ of 0.02 suits D = 768 and is too small for D = 64; 1/√in follows the width.
    """

    family = "vit"
    Config = ViTConfig
    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        check_config(config)
        dim = config.blocks[0].embed_dim
        self.stem = build_stem(config.stem, config.in_chans, dim)
        self.grid = patch_grid(config.image_size, self.stem.stride * config.patch_size)
        self.patch_embed = PatchEmbedding(self.stem.out_chans, config.patch_size, dim)
        self.num_prefix_tokens = (config.pool == "token") + config.distilled
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.pool == "token" else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.distilled else None
        num_tokens = self.num_prefix_tokens + prod(self.grid)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, dim)) if config.positions else None
        self.blocks = BlockList(map(Block, config.blocks))
        self.norm = nn.LayerNorm(dim, config.blocks[-1].norm_eps)
        self.head = ClassificationHead(dim, config.num_classes, config.pool, config.distilled)
        self.init_weights()
        self.preprocessing = {
            "image_size": config.image_size,
            "channels": config.in_chans,
            "mean": (0.5,) * config.in_chans,  # pixel values from -1 to 1, as in the authors' code
            "std": (0.5,) * config.in_chans,
            "crop_mode": "squash",
        }

    def forward(self, pixel_values: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits; a distilled model returns the mean of two classifiers (Touvron et al. 2021, section 4)."""
        return self.forward_classifiers(pixel_values).mean(dim=1)

    def forward_classifiers(
        self, pixel_values: Float[Tensor, "batch chans height width"]
    ) -> Float[Tensor, "batch classifiers classes"]:
        """Return the logits of each classifier: one, or two if the model is distilled."""
        num_queries = self.num_prefix_tokens or None  # mean pooling reads every token
        return self.head(self.forward_features(pixel_values, num_queries))

    def forward_features(
        self, pixel_values: Float[Tensor, "batch chans height width"], num_queries: int | None = None
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the encoder's output: class token, distillation token, then the patches row by row.

        With `num_queries`, the last block computes only the first `num_queries` tokens: the head reads no others.
        """
        x = self.embed(pixel_values)
        x = self.blocks(x, num_queries=num_queries)  # equations 2 and 3
        return self.norm(x)  # equation 4

    def embed(self, pixel_values: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Return the tokens before the first block (equation 1). Raises GlocalError for images of another size."""
        self.check_size(pixel_values)
        x = self.patch_embed(self.stem(pixel_values))  # (B, N, D)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        if prefix:
            x = torch.cat([*prefix, x], dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        return x

    def check_size(self, pixel_values: Tensor) -> None:
        """Raise GlocalError if images are not a batch of the config's size."""
        check_images(self, pixel_values)
        expected = (self.config.in_chans, *self.config.image_size)
        if pixel_values.shape[1:] != expected:
            given = "×".join(map(str, pixel_values.shape[1:]))
            raise GlocalError(
                f"images of {given}; this model takes C×H×W = {'×'.join(map(str, expected))}: resize them, or load it "
                "with another image_size"
            )

    def init_weights(self) -> None:
        """Initialise what the table above lists; other layers, such as LayerNorm, keep torch's defaults."""
        self.init_linears(self)
        for parameter in (self.cls_token, self.dist_token, self.pos_embed):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def init_linears(self, part: nn.Module) -> None:
        """Initialise the linear layers of the model or of a part."""
        for module in part.modules():
            if isinstance(module, nn.Linear):
                std = module.in_features**-0.5
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the learned tokens and position embeddings."""
        return {"cls_token", "dist_token", "pos_embed"} & {name for name, _ in self.named_parameters()}

    def adapt_state(self, state: StateDict, source: ViTConfig) -> StateDict:
        """Return another ViT's weights with its position embeddings resized to this one's grid (section 3.2)."""
        if "pos_embed" not in state or source.image_size == self.config.image_size:
            return state
        stem = self.stem
        if source.stem != self.config.stem:  # the stride of a CNN is known only after it is built
            stem = build_stem(source.stem, source.in_chans, source.blocks[0].embed_dim)
        grid = patch_grid(source.image_size, stem.stride * source.patch_size)
        return state | {"pos_embed": resize_positions(state["pos_embed"], grid, self.grid, self.num_prefix_tokens)}


def check_config(config: ViTConfig) -> None:
    """Raise GlocalError if the fields do not describe a ViT."""
    if config.distilled and config.pool != "token":
        raise GlocalError("a distilled model needs a class token and a distillation token: set pool to 'token'")
    dim = config.blocks[0].embed_dim
    if any(block.cross or block.embed_dim != dim for block in config.blocks):
        raise GlocalError("a ViT's blocks need cross=False and the same embed_dim")


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of patches with a side of `patch_size` pixels (section 3.1).

    Raises GlocalError if a side of the image is not divisible by `patch_size`.
    """
    height, width = image_size
    if height % patch_size or width % patch_size:
        divisible = "×".join(str(ceil(side / patch_size) * patch_size) for side in image_size)
        raise GlocalError(
            f"image size {height}×{width} is not divisible by patches of {patch_size} pixels; use {divisible}"
        )
    return height // patch_size, width // patch_size
