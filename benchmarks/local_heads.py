"""Generation with local heads beside generation with global heads alone, behind a context of 1,000 tokens.

    python benchmarks/local_heads.py

Writes results/speed-local-heads-PROCESSOR.csv. `gpt2-half` has half of GPT-2's heads local, `gpt2-windows` five blocks
of windows of 256 tokens to one of full attention. All have random weights, which take as long as trained ones. A row
times some tokens of each model in turn; its ratio is GPT-2's time divided by the model's.
"""

import argparse

import torch
from timing import COLUMNS, compare, introduce, packed, take_turns, write

from glocal.models import GPT, create_model

CONTEXT, TOKENS, LONGEST = 1000, 8, 2000
"""Tokens that are read first, that a run generates, and that the models have positions for."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the generation of a GPT-2 with local heads.")
    parser.add_argument("--pairs", type=int, default=15, help="how often each is run (default: %(default)s)")
    args = parser.parse_args()
    introduce()
    torch.manual_seed(0)
    rows = []
    for precision in ("float32", "int8"):
        plain = Writer("gpt2", precision)
        for name in ("gpt2-half", "gpt2-windows"):
            what = f"{name}, {TOKENS} tokens behind {CONTEXT}, {precision}"
            times = take_turns(Writer(name, precision), plain, args.pairs)
            rows.append(compare({(what, "gpt2"): (1.1, 1.3)}, what, "gpt2", "ms", *times))
    write(rows, "speed-local-heads", COLUMNS)


class Writer:
    """A model that has read the context, and generates some tokens at each call."""

    def __init__(self, name: str, precision: str) -> None:
        model = packed(create_model(name, max_length=LONGEST).eval(), precision)
        assert isinstance(model, GPT)
        ids = torch.randint(50000, (1, CONTEXT))
        with torch.inference_mode():
            self.state = model.start(ids, torch.ones_like(ids, dtype=torch.bool), 1, LONGEST - CONTEXT)
        self.model = model
        self.token = ids[:, -1]

    @torch.inference_mode()
    def __call__(self) -> None:
        """Generate `TOKENS` tokens."""
        for _ in range(TOKENS):
            self.token = self.model.step(self.token, self.state).argmax(dim=1)


if __name__ == "__main__":
    main()
