"""What reads the encoder's tokens."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Pool = Literal["token", "mean"]


class ClassificationHead(nn.Module):
    """Logits from one vector an image.

    `token` reads the class token; `mean` averages all tokens (Dosovitskiy et al. 2020, appendix D.3). With
    `distilled`, a second classifier reads the distillation token that stands behind the class token (Touvron et al.
    2021, section 4), and the answer is the mean of both.
    """

    def __init__(self, embed_dim: int, num_classes: int, pool: Pool = "token", distilled: bool = False) -> None:
        super().__init__()
        self.pool = pool
        self.classifier = nn.Linear(embed_dim, num_classes)
        self.distillation = nn.Linear(embed_dim, num_classes) if distilled else None

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch heads classes"]:
        """One row of logits a classifier: the class token's, then the distillation token's where there is one."""
        if self.distillation is not None:
            return torch.stack([self.classifier(tokens[:, 0]), self.distillation(tokens[:, 1])], dim=1)
        pooled = tokens[:, 0] if self.pool == "token" else tokens.mean(dim=1)
        return self.classifier(pooled)[:, None]
