"""Heads: from refined tokens to logits."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glocal import ops
from glocal.layers.dropout import Dropout

Pool = Literal["token", "mean", "last"]


class ClassificationHead(nn.Module):
    """Logits from one vector per example, which `pool` chooses.

    | pool    | vector                                                                                        |
    | ------- | --------------------------------------------------------------------------------------------- |
    | `token` | the first token, a class token (ViT, BERT)                                                    |
    | `mean`  | the mean of all tokens (Dosovitskiy et al. 2020, appendix D.3)                                |
    | `last`  | the last token, which in a causal model attends to all others (Radford et al. 2018, equation 3) |

    With `pooler`, W x + b and tanh precede the classifier (BERT, which pre-trains them). With `distilled`, a second
    classifier reads the second token, the distillation token (Touvron et al. 2021, section 4). With 0 classes there is
    no classifier, and the pooled features are returned (timm's convention).
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
    ) -> Float[Tensor, "batch classifiers classes"]:
        """Return the logits of each classifier: of the class token, then of the distillation token, if there is one.

        `mask` is True at an example's own tokens and False at padding.
        """
        if self.distillation is not None:
            return torch.stack([self.classifier(tokens[:, 0]), self.distillation(tokens[:, 1])], dim=1)
        x = self.pool_tokens(tokens, mask)
        if self.pooler is not None:
            x = self.pooler(x).tanh()
        return self.classifier(self.drop(x))[:, None]

    def pool_tokens(self, tokens: Tensor, mask: Tensor | None) -> Float[Tensor, "batch dim"]:
        """Return the vector of each example."""
        if self.pool == "token":
            return tokens[:, 0]
        if mask is None:
            return tokens[:, -1] if self.pool == "last" else tokens.mean(dim=1)
        if self.pool == "last":
            last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
            return tokens[torch.arange(len(tokens), device=tokens.device), last]
        return (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class TokenHead(nn.Module):
    """Logits from every token: of its class, or of a span starting and ending there (two classes).

    Devlin et al. 2018, sections 5.3 (classes) and 4.2 (spans).
    """

    def __init__(self, embed_dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = Dropout(dropout)
        self.classifier = ops.Linear(embed_dim, num_classes)

    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens classes"]:
        """Return the logits of each token."""
        return self.classifier(self.drop(tokens))
