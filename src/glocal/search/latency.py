"""Costs that are timed: the milliseconds of one batch in evaluation, or of one generated token."""

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
"""Rounds over all parts; the time of a part is its median over the rounds."""
TIMED = 3
"""Calls of a part in each round; only the last call is timed."""


class Call(NamedTuple):
    """A module or a function, and the arguments that it is called with."""

    function: Callable[..., object]
    args: tuple[object, ...]
    kwargs: dict[str, object]


class IdentityBlock(nn.Module):
    """Takes the place of the blocks in a model, and computes nothing."""

    def forward(self, x: Tensor, num_queries: int | None = None, **inputs: object) -> Tensor:
        """Return as many tokens as the last block of a model does."""
        return x[:, :num_queries]


class LatencyTable(CostTable):
    """The milliseconds of a batch in evaluation, timed on this machine and saved to a file.

    Each round times all parts, so that a machine that is busy for a while slows all of them.

    A repeated search, and all ranks of one search, need the same table: measure the space once, with `add`, and give
    each of them the file. The last block counts like any other, although in a ViT it is faster, since it computes only
    the class token.
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
        """Read a table. Raises GlocalError if the file is no table, or was timed under another setting."""
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
        # Without autocast's cache: in use a weight is cast once per batch, and with it once for all timings.
        cast = torch.autocast(
            self.device.type, DTYPES.get(self.precision), enabled=self.precision in DTYPES, cache_enabled=False
        )
        with torch.inference_mode(), cast, torch.random.fork_rng(devices=[]):
            return self.time_parts(parts)

    def time_parts(self, parts: list[BlockConfig | None]) -> list[float]:
        """Return the milliseconds of the frame (a model whose blocks compute nothing), and of each block alone."""
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
        """Return the median milliseconds of each call. A call is made anew in each round: not all may fit in memory."""
        times: list[list[float]] = [[] for _ in makers]
        for _ in range(REPEATS):
            for make, part_times in zip(makers, times, strict=True):
                part_times.append(self.clock(make()))
        return [statistics.median(part_times) for part_times in times]

    def inputs(self) -> tuple[Tensor, ...]:
        """Return a batch of examples on the device."""
        return tuple(tensor.to(self.device) for tensor in self.example.inputs(self.batch_size))

    def block_calls(self, model: Model) -> dict[str, Call]:
        """Return the call of the first block of each stack in a forward pass of a model."""
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
    """The milliseconds of one generated token in the middle of a text of `tokens` tokens, with the model's caches.

    In a model that translates, only the decoder is timed: the encoder reads a text once, and its blocks count as 0.
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
        """Return the milliseconds of each block's step, and of the frame: a model's step less its blocks' steps."""
        model = self.build(()).to(self.device).eval()
        assert isinstance(model, Generative)
        blocks = [part for part in parts if part is not None and self.stack_of(part) == self.stack]
        model_blocks = getattr(model.config, self.stack)
        makers = [partial(self.block_step, block) for block in (*blocks, *model_blocks)]
        *times, model_time = self.medians([*makers, partial(self.model_step, model)])
        block_times = dict(zip(blocks, times[: len(blocks)], strict=True))
        frame = max(model_time - sum(times[len(blocks) :]), 0.0)
        return [frame if part is None else block_times.get(part, 0.0) for part in parts]

    @property
    def length(self) -> int:
        """The number of tokens before the one that is timed."""
        assert isinstance(self.size, int)
        return max(self.size // 2, 1)

    def block_step(self, config: BlockConfig) -> Call:
        """Return the call of a block for the next token."""
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
        """Return the call of a model for the next token."""
        ids = torch.zeros(self.batch_size, self.length + 1, dtype=torch.long, device=self.device)
        state = model.start(ids, torch.ones_like(ids, dtype=torch.bool), 1, TIMED + 1)
        return Call(model.step, (ids[:, 0], state), {})
