"""What reads the encoder's tokens."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glocal import ops
from glocal.layers.dropout import Dropout

Pool = Literal["token", "mean", "last"]


class ClassificationHead(nn.Module):
    """Logits from one vector an example.

    `token` reads the first token, a class token (ViT, BERT); `mean` averages all tokens (Dosovitskiy et al. 2020,
    appendix D.3); `last` reads the last one, which in a causal model is all that has seen the others (Radford et al.
    2018, equation 3). A `pooler`, W x + b and tanh, stands before BERT's classifier, and is pre-trained with it. With
    `distilled`, a second classifier reads the distillation token that stands behind the class token (Touvron et al.
    2021, section 4), and the answer is the mean of both. With no classes there is no classifier, and what it would read
    is returned (timm's convention).
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        pool: Pool = "token",
        distilled: bool = False,
        pooler: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.pooler = ops.Linear(embed_dim, embed_dim) if pooler else None
        self.drop = Dropout(dropout)
        self.classifier = ops.Linear(embed_dim, num_classes, bias) if num_classes else nn.Identity()
        self.distillation = None
        if distilled:
            self.distillation = ops.Linear(embed_dim, num_classes, bias) if num_classes else nn.Identity()

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch heads classes"]:
        """One row of logits a classifier: the class token's, then the distillation token's where there is one.

        The mask is True at an example's own tokens, where some are padding.
        """
        if self.distillation is not None:
            return torch.stack([self.classifier(tokens[:, 0]), self.distillation(tokens[:, 1])], dim=1)
        x = self.read(tokens, mask)
        if self.pooler is not None:
            x = self.pooler(x).tanh()
        return self.classifier(self.drop(x))[:, None]

    def read(self, tokens: Tensor, mask: Tensor | None) -> Float[Tensor, "batch dim"]:
        """Return the one vector of each example."""
        if self.pool == "token":
            return tokens[:, 0]
        if mask is None:
            return tokens[:, -1] if self.pool == "last" else tokens.mean(dim=1)
        if self.pool == "last":
            last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
            return tokens.take_along_dim(last[:, None, None], dim=1)[:, 0]
        return (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class TokenHead(nn.Module):
    """Logits from every token: of its class, or, with two of them, of being where a span starts and where it ends.

    Devlin et al. 2018, sections 4.2 (spans) and 5.3 (classes).
    """

    def __init__(self, embed_dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = Dropout(dropout)
        self.classifier = ops.Linear(embed_dim, num_classes)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens classes"]:
        """Ask each token for itself."""
        return self.classifier(self.drop(tokens))
