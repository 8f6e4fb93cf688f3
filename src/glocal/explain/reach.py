"""How far a gradient reaches back: its norm with respect to earlier tokens, by their distance.

Between two tokens at a distance of n, there are O(n) steps of a recurrent layer and O(1) of self-attention, and
dependencies are learned more easily over shorter paths (Vaswani et al. 2017, section 4 and table 1).
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.models import Model


def gradient_reach(model: Model, batches: Iterable[Mapping[str, Tensor]]) -> Float[np.ndarray, "sentences distances"]:
    """Return ‖∂L_T/∂x_(T-n)‖ at n = 0, 1, ...: L_T is the loss of a target's last token, x the embedded target.

    The model is a Transformer or an LSTM, which is set to evaluation mode; the batches are those of translation, on the
    model's device. Shorter sentences have NaN. The tokens of the source are left out: in either model, attention
    connects them to every token of the target in one step.
    """
    rows = [_reach(model.eval(), batch) for batch in batches]
    longest = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, longest - row.shape[1])), constant_values=np.nan) for row in rows])


def _reach(model: Model, batch: Mapping[str, Tensor]) -> Float[np.ndarray, "batch distances"]:
    ids, labels = batch["decoder_input_ids"], batch["labels"]
    embedded: list[Tensor] = []

    def catch(embedding: nn.Module, args: tuple[object, ...], output: Tensor) -> None:
        if args[0] is ids:  # not the source, which has the same embedding
            embedded.append(output)

    hook = model.get_submodule("embedding").register_forward_hook(catch)
    try:
        # cuDNN's LSTM has no gradient in evaluation mode, where dropout is off.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            logits = model(batch["input_ids"], ids, batch["attention_mask"])
            last = (labels != -100).sum(dim=1, keepdim=True) - 1
            loss = F.cross_entropy(
                logits.take_along_dim(last[..., None], 1)[:, 0].float(), labels.gather(1, last)[:, 0], reduction="sum"
            )
            norms = torch.autograd.grad(loss, embedded)[0].float().norm(dim=-1)
    finally:
        hook.remove()
    place = last - torch.arange(ids.shape[1], device=ids.device)  # n tokens before the last
    return norms.gather(1, place.clamp(min=0)).masked_fill(place < 0, float("nan")).cpu().numpy()
