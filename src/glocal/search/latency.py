"""Costs that are timed: milliseconds of a batch in evaluation, or of one generated token."""

import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.files import write_json
from glocal.layers.block import Block, BlockConfig
from glocal.layers.decoder import DecoderState, decode
from glocal.layers.encoder import BlockList
from glocal.models import Model
from glocal.models.config import stacks
from glocal.models.generative import GenerationState, Generative
from glocal.search.counts import CostTable
from glocal.training.devices import choose_precision, machine, this_process

Precision = Literal["auto", "float32", "bf16", "fp16"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
REPEATS = 9
"""Rounds over all parts; the time of a part is the median."""
TIMED = 3
"""Calls of a part in a round, of which the last is timed."""


class Call(NamedTuple):
    """A module or a function, and what it is called with."""

    function: Callable[..., object]
    args: tuple[object, ...]
    kwargs: dict[str, object]


class IdentityBlock(nn.Module):
    """Takes the place of the blocks in a model, and computes nothing."""

    def forward(self, x: Tensor, num_queries: int | None = None, **inputs: object) -> Tensor:
        """Return as many tokens as a last block."""
        return x[:, :num_queries]


class LatencyTable(CostTable):
    """Milliseconds of a batch in evaluation, timed on this machine and saved to a file.

    Each round times all parts, so that a machine that is busy for a while slows all of them.

    To repeat a search, and for several ranks of one search, the table must be the same: measure the space once, with
    `add`, and give all of them the file. The last block counts like any other, although in a ViT it is faster, since it
    computes the class token only.
    """

    def __init__(
        self,
        model: Model,
        tokens: int | None = None,
        file: str | Path | None = None,
        batch_size: int = 1,
        precision: Precision = "auto",
        device: torch.device | None = None,
    ) -> None:
        super().__init__(model, tokens)
        self.file = None if file is None else Path(file)
        self.batch_size = batch_size
        self.device = device or this_process().device
        self.precision = choose_precision(self.device) if precision == "auto" else precision
        config = {name: value for name, value in asdict(self.config).items() if name not in stacks(type(self.config))}
        self.setting = json.loads(
            json.dumps(
                {
                    "kind": type(self).__name__,
                    "machine": machine(self.device),
                    "torch": torch.__version__,
                    "device": self.device.type,
                    "precision": self.precision,
                    "batch_size": batch_size,
                    "example": str(self.example),
                    "embed_dim": getattr(self.config, stacks(type(self.config))[0])[0].embed_dim,
                }
                | config
            )
        )
        if self.file is not None and self.file.exists():
            self.load(self.file)

    def add(self, blocks: Iterable[BlockConfig]) -> None:
        """Time the blocks that are not in the table yet, and save them to the file."""
        before = len(self.known)
        super().add(blocks)
        if self.file is not None and len(self.known) > before:
            parts = [
                {"block": None if part is None else asdict(part), "milliseconds": cost}
                for part, cost in self.known.items()
            ]
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, {"setting": self.setting, "parts": parts})

    def load(self, file: Path) -> None:
        """Read a file. Raises GlocalError where it is no table, or was timed under another setting."""
        try:
            content = json.loads(file.read_text())
            setting = dict(content["setting"])
            parts = [(part["block"], float(part["milliseconds"])) for part in content["parts"]]
            known = {None if block is None else BlockConfig(**block): cost for block, cost in parts}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise GlocalError(f"{file} is not a table of milliseconds: {error!r}; give another, or delete it") from None
        for name, here in self.setting.items():
            if (there := setting.get(name)) != here:
                raise GlocalError(
                    f"{file} holds milliseconds for {name} {there}, and this is {name} {here}; give another file, or "
                    "delete it to measure again"
                )
        self.known |= known

    def measure(self, parts: list[BlockConfig | None]) -> list[float]:
        """Return the milliseconds of each part."""
        # Without the cache: a model casts each of its weights once a batch, not once in a long autocast.
        cast = torch.autocast(
            self.device.type, DTYPES.get(self.precision), enabled=self.precision in DTYPES, cache_enabled=False
        )
        with torch.inference_mode(), cast, torch.random.fork_rng(devices=[]):
            return self.time_parts(parts)

    def time_parts(self, parts: list[BlockConfig | None]) -> list[float]:
        """Return the milliseconds of the frame, whose blocks compute nothing, and of each block alone."""
        frame = self.build(()).to(self.device).eval()
        calls = self.block_calls(frame)
        for name in stacks(type(self.config)):
            setattr(frame, name, BlockList([IdentityBlock()]))

        def call(part: BlockConfig | None) -> Call:
            if part is None:
                return Call(frame, self.inputs(), {})
            return calls[self.stack_of(part)]._replace(function=Block(part).to(self.device).eval())

        return self.medians([partial(call, part) for part in parts])

    def medians(self, makers: list[Callable[[], Call]]) -> list[float]:
        """Return the median milliseconds of each call, made anew in each round: a whole space may not fit in memory."""
        times: list[list[float]] = [[] for _ in makers]
        for _ in range(REPEATS):
            for make, of_part in zip(makers, times, strict=True):
                of_part.append(self.clock(make()))
        return [statistics.median(of_part) for of_part in times]

    def inputs(self) -> tuple[Tensor, ...]:
        """Return a batch of examples on the device."""
        return tuple(tensor.to(self.device) for tensor in self.example.inputs(self.batch_size))

    def block_calls(self, model: Model) -> dict[str, Call]:
        """Return what the first block of each stack of a model is called with."""
        calls: dict[str, Call] = {}
        hooks = []
        for name in stacks(type(self.config)):

            def keep(block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], name: str = name) -> None:
                calls[name] = Call(block, args, kwargs)

            hooks.append(getattr(model, name)[0].register_forward_pre_hook(keep, with_kwargs=True))
        model(*self.inputs())
        for hook in hooks:
            hook.remove()
        return calls

    def clock(self, call: Call) -> float:
        """Return the milliseconds of one call, after two to warm up."""
        for _ in range(TIMED):
            start = time.perf_counter()
            call.function(*call.args, **call.kwargs)
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
        return 1000 * (time.perf_counter() - start)


class TokenLatencyTable(LatencyTable):
    """Milliseconds of one generated token, in the middle of a text of `tokens`, with the caches of generation.

    Of a model that translates these are the decoder's; the encoder reads a text once, and its blocks count as 0.
    Raises GlocalError for a model that generates no text.
    """

    def __init__(self, model: Model, *args: Any, **kwargs: Any) -> None:
        if not isinstance(model, Generative):
            raise GlocalError(
                f"search.budget.kind milliseconds_per_token of a {type(model).__name__}, which generates no text; "
                "give macs, parameters or milliseconds"
            )
        super().__init__(model, *args, **kwargs)
        self.stack = stacks(type(self.config))[-1]
        """The stack that generates."""

    def time_parts(self, parts: list[BlockConfig | None]) -> list[float]:
        """Return the milliseconds of each block's step, and of the frame: a model's step less those of its blocks."""
        model = self.build(()).to(self.device).eval()
        assert isinstance(model, Generative)
        blocks = [part for part in parts if part is not None and self.stack_of(part) == self.stack]
        own = getattr(model.config, self.stack)
        makers = [partial(self.block_step, block) for block in (*blocks, *own)]
        *times, whole = self.medians([*makers, partial(self.model_step, model)])
        of_block = dict(zip(blocks, times, strict=False))
        frame = max(whole - sum(times[len(blocks) :]), 0.0)
        return [frame if part is None else of_block.get(part, 0.0) for part in parts]

    @property
    def length(self) -> int:
        """Tokens before the one that is timed."""
        assert isinstance(self.size, int)
        return max(self.size // 2, 1)

    def block_step(self, config: BlockConfig) -> Call:
        """Return a block's step for one token more."""
        block = Block(config).to(self.device).eval()
        rows, dim = self.batch_size, config.embed_dim
        context = torch.randn(rows, self.length, dim, device=self.device)
        state = DecoderState([block.new_cache(rows, self.length + TIMED)])
        if config.cross:
            state.contexts = [block.keys_values(context)]
            state.context_mask = torch.ones(rows, 1, 1, self.length, dtype=torch.bool, device=self.device)
        decode([block], context, state)
        return Call(partial(decode, [block]), (context[:, :1], state), {})

    def model_step(self, model: Generative[GenerationState]) -> Call:
        """Return a model's step for one token more."""
        ids = torch.zeros(self.batch_size, self.length + 1, dtype=torch.long, device=self.device)
        state = model.start(ids, torch.ones_like(ids, dtype=torch.bool), 1, TIMED + 1)
        return Call(model.step, (ids[:, 0], state), {})
