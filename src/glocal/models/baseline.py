"""timm's networks with the interface of ours: baselines and teachers.

timm is imported where a network is built: it imports torchvision and torch's compiler, which takes seconds.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.files import JSONObject, reason, short
from glocal.layers.config import MAX_DEPTH
from glocal.models.base import Model, check_images
from glocal.models.config import nearest
from glocal.models.loading import adapt_preprocessing

RESERVED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable")
"""Arguments of timm.create_model that make it read other files."""

DEPTHS = {"depth", "depths", "layers", "num_layers", "num_blocks"}
"""Arguments of timm's networks that are numbers of blocks."""


@dataclass(frozen=True)
class BaselineConfig:
    """One of timm's networks."""

    name: str = "resnet18"
    """timm's name of the network."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels; networks without positions take any size."""
    in_chans: int = 3
    """Channels of an image."""
    num_classes: int = 1000
    """Logits of an image."""
    drop_path: float = 0.0
    """Rate at which an example skips a residual branch in training."""
    args: JSONObject = field(default_factory=dict)
    """Further arguments of this network, as timm.create_model takes them."""


class Baseline(Model):
    """Any of timm's networks by its name, with the interface of our models.

    With `pretrained`, its weights are downloaded from the hub, its head among them if it has `num_classes`. Raises
    GlocalError where timm has no such network, arguments or weights.
    """

    family = "timm"
    Config = BaselineConfig
    config: BaselineConfig

    def __init__(self, config: BaselineConfig, pretrained: bool = False) -> None:
        super().__init__(config)
        import timm

        if not timm.is_model(config.name):
            raise GlocalError(f"timm has no model {config.name!r}; {nearest(config.name, timm.list_models())}")
        args = dict(config.args)
        if reserved := [name for name in args if name in RESERVED]:
            raise GlocalError(f"args of {config.name} name {', '.join(reserved)}; leave them out")
        for arg in DEPTHS & args.keys():
            given = args[arg] if isinstance(args[arg], list | tuple) else [args[arg]]
            if any(isinstance(depth, int) and depth > MAX_DEPTH for depth in given):
                raise GlocalError(f"{arg} {short(args[arg])} in args of {config.name}; expected {MAX_DEPTH} at most")
        if config.drop_path:
            args["drop_path_rate"] = config.drop_path
        if getattr(timm.get_pretrained_cfg(config.name), "fixed_input_size", False):
            args["img_size"] = config.image_size
        try:
            net: Any = timm.create_model(
                config.name, pretrained, in_chans=config.in_chans, num_classes=config.num_classes, **args
            )
        except (TypeError, ValueError, RuntimeError, OSError) as error:  # an argument it has not, or no such weights
            raise GlocalError(f"timm builds no {config.name} with {args}: {reason(error)}") from None
        self.net = net
        self.preprocessing = timm_preprocessing(net.pretrained_cfg, config)

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """The classifier of the network; a list of both where it is distilled."""
        classifier = self.net.get_classifier()
        return nn.ModuleList(classifier) if isinstance(classifier, tuple) else classifier

    def forward(self, pixel_values: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        check_images(self, pixel_values)
        return self.net(pixel_values.contiguous(memory_format=torch.channels_last))

    def forward_classifiers(
        self, pixel_values: Float[Tensor, "batch chans height width"]
    ) -> Float[Tensor, "batch classifiers classes"]:
        """Return the logits of its one classifier, as distillation needs them."""
        return self(pixel_values)[:, None]

    def forward_features(
        self, pixel_values: Float[Tensor, "batch chans height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the features before pooling: tokens, or the cells of a map row by row."""
        features = self.net.forward_features(pixel_values)
        if features.ndim == 3:
            return features
        channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if channels_last else features.flatten(2).mT

    def no_weight_decay(self) -> set[str]:
        """Return what timm excludes from weight decay."""
        return {f"net.{name}" for name in getattr(self.net, "no_weight_decay", set)()}


def timm_preprocessing(cfg: JSONObject, config: BaselineConfig) -> JSONObject:
    """Return timm's preprocessing of a network's images; for grey images, the mean over the colours."""
    colours = {"image_size": config.image_size, "channels": 3, "mean": cfg["mean"], "std": cfg["std"]}
    colours |= {name: cfg[name] for name in ("interpolation", "crop_pct", "crop_mode") if cfg.get(name)}
    return adapt_preprocessing(colours, config.image_size, config.in_chans)
