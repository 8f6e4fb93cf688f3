"""What a path costs: a table for each kind of cost (`counts`, `latency`)."""

from pathlib import Path
from typing import Literal

import torch

from glocal.models import Model
from glocal.search.counts import CostTable, CountTable
from glocal.search.latency import LatencyTable, Precision, TokenLatencyTable

CostKind = Literal["macs", "parameters", "milliseconds", "milliseconds_per_token"]


def cost_table(
    kind: CostKind,
    model: Model,
    tokens: int | None = None,
    file: str | Path | None = None,
    batch_size: int = 1,
    precision: Precision = "auto",
    device: torch.device | None = None,
) -> CostTable:
    """Return the table of one kind of cost for models like `model`: `Budget(cost=cost_table("macs", model))`.

    `tokens` is the length of the text that the cost is for; in a translation, of both the source and the target. The
    later arguments are for milliseconds: the file of the table, and the batch size, the precision and the device that
    are timed (by default the device of training). Raises GlocalError if the file was timed under another setting.
    """
    match kind:
        case "macs" | "parameters":
            return CountTable(model, kind, tokens)
        case "milliseconds":
            return LatencyTable(model, tokens, file, batch_size, precision, device)
        case "milliseconds_per_token":
            return TokenLatencyTable(model, tokens, file, batch_size, precision, device)
