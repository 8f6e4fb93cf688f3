"""Continuous batching: 8 requests in one running batch, beside one at a time and beside `generate` on a batch of 8.

    python benchmarks/continuous.py [--threads 1] [--pairs 5]

The models have random weights and no end of a text, so that every request writes as many tokens.
"""

import argparse
from functools import partial

import torch
from timing import COLUMNS, compare, introduce, packed, take_turns, threads, write

from glocal.generation import ContinuousBatch, DecodingConfig, generate
from glocal.layers.block import uniform_blocks
from glocal.models import GPT, GPTConfig

REQUESTS, PROMPT, NEW = 8, 32, 96


def config(depth: int, embed_dim: int, num_heads: int, vocab_size: int) -> GPTConfig:
    blocks = uniform_blocks(depth, embed_dim=embed_dim, num_heads=num_heads, causal=True, activation="gelu_tanh")
    return GPTConfig(vocab_size, PROMPT + NEW, blocks, pad_id=None, bos_id=None, eos_id=None)


SHAPES = {
    "4 layers of 128": config(4, 128, 4, 1024),
    "6 layers of 384": config(6, 384, 6, 8192),
    "GPT-2 124 M": config(12, 768, 12, 50257),
}
DECODINGS = {
    "greedy": DecodingConfig(extra_length=NEW),
    "top-k 40": DecodingConfig(temperature=0.8, top_k=40, extra_length=NEW),
}
AIMS = {(f"{title}, {decoding}", "one at a time"): (3.0, 4.0) for title in list(SHAPES)[:2] for decoding in DECODINGS}


def one_at_a_time(model: GPT, prompts: torch.Tensor, decoding: DecodingConfig) -> None:
    for prompt in prompts:
        in_one_batch(model, prompt[None], decoding)


def in_one_batch(model: GPT, prompts: torch.Tensor, decoding: DecodingConfig) -> None:
    generate(model, prompts, torch.ones_like(prompts, dtype=torch.bool), decoding)


def continuously(batch: ContinuousBatch, prompts: torch.Tensor, decoding: DecodingConfig) -> None:
    for prompt in prompts.tolist():
        batch.submit(prompt, decoding)
    while batch.busy:
        batch.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=9)
    arguments = parser.parse_args()
    introduce()
    rows = []
    with threads(arguments.threads):
        for title, shape in SHAPES.items():
            model = packed(GPT(shape), "float32")
            batch = ContinuousBatch(model, slots=REQUESTS)
            prompts = torch.randint(shape.vocab_size, (REQUESTS, PROMPT))
            for name, decoding in DECODINGS.items():
                ours = partial(continuously, batch, prompts, decoding)
                for peer, run in {"one at a time": one_at_a_time, "a batch of 8": in_one_batch}.items():
                    theirs = partial(run, model, prompts, decoding)
                    times = take_turns(ours, theirs, arguments.pairs)
                    rows.append(compare(AIMS, f"{title}, {name}", peer, "ms", *times))
    write(rows, "speed-continuous", COLUMNS)


if __name__ == "__main__":
    main()
