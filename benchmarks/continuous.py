"""Continuous batching: 8 requests in one running batch, beside one at a time and beside `generate` on a batch of 8.

    python benchmarks/continuous.py [--threads 1] [--pairs 5]

The models have random weights and no end of a text, so that every request writes as many tokens.
"""

import argparse
from functools import partial

import torch
from timing import COLUMNS, compare, introduce, packed, take_turns, threads, write

from glocal.generation import ContinuousBatch, DecodingConfig, generate
from glocal.models import create_model
from glocal.models.generative import DecoderOnly

REQUESTS, PROMPT, NEW = 8, 32, 96
SHAPES = {
    "4 layers of 128": {"depth": 4, "embed_dim": 128, "num_heads": 4, "vocab_size": 1024},
    "6 layers of 384": {"depth": 6, "embed_dim": 384, "num_heads": 6, "vocab_size": 8192},
    "GPT-2 124 M": {"depth": 12, "embed_dim": 768, "num_heads": 12, "vocab_size": 50257},
}
DECODINGS = {
    "greedy": DecodingConfig(extra_length=NEW),
    "top-k 40": DecodingConfig(temperature=0.8, top_k=40, extra_length=NEW),
}
AIMS = {(f"{shape}, {decoding}", "one at a time"): (3.0, 4.0) for shape in list(SHAPES)[:2] for decoding in DECODINGS}


def one_at_a_time(model: DecoderOnly, prompts: torch.Tensor, decoding: DecodingConfig) -> None:
    for prompt in prompts:
        in_one_batch(model, prompt[None], decoding)


def in_one_batch(model: DecoderOnly, prompts: torch.Tensor, decoding: DecodingConfig) -> None:
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
        for shape, fields in SHAPES.items():
            special = dict.fromkeys(("pad_id", "bos_id", "eos_id"))
            model = packed(create_model("gpt2", max_length=PROMPT + NEW, **fields, **special), "float32")
            batch = ContinuousBatch(model, slots=REQUESTS)
            prompts = torch.randint(fields["vocab_size"], (REQUESTS, PROMPT))
            for name, decoding in DECODINGS.items():
                ours = partial(continuously, batch, prompts, decoding)
                for peer, run in {"one at a time": one_at_a_time, "a batch of 8": in_one_batch}.items():
                    theirs = partial(run, model, prompts, decoding)
                    times = take_turns(ours, theirs, arguments.pairs)
                    rows.append(compare(AIMS, f"{shape}, {name}", peer, "ms", *times))
    write(rows, "speed-continuous", COLUMNS)


if __name__ == "__main__":
    main()
