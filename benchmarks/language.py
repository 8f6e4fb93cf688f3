"""GPT-2 and BERT-Base beside transformers' own, of the same weights: a text that is written, and a training step.

    python benchmarks/language.py            # about five minutes on 2 cores
    python benchmarks/language.py --pairs 3  # quicker, and rougher

Writes results/speed-language.csv. The weights are random and shared by both, as transformers' folder on disk, and what
they compute is first checked to be equal: the tokens, and the loss to 1e-4. No token ends a text, so that both write 64
tokens for one prompt of 16. The step is BERT's pre-training on 8 rows of 128 tokens, of which 15 % are masked: forward,
backward and Adam. Two that are compared take turns in one process; a ratio is their time divided by ours within such a
pair, and the table gives the median of all pairs and their quartiles.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timing import autocast, compare, take_turns, write
from transformers import BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from glocal.inference import DecodingConfig, generate
from glocal.layers.fused import pack
from glocal.models import load_model
from glocal.tasks import MaskedLanguage

RESULT = Path(__file__).parents[1] / "results" / "speed-language.csv"
COLUMNS = (
    *("what", "ours", "transformers", "unit", "ratio", "quartile1", "quartile3", "repeats", "at_least", "hope"),
    *("command", "commit", "machine", "torch_version", "transformers_version"),
)
PROMPT, WRITTEN = 16, 64
ROWS, LENGTH = 8, 128

AIMS = {  # at least, hoped for
    "GPT-2, 64 tokens, float32": (2.0, 2.7),
    "GPT-2, 64 tokens, bf16": (1.4, 1.9),
    "BERT-Base, training step, float32": (1.1, 1.4),
    "BERT-Base, training step, bf16": (1.4, 2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time GPT-2 and BERT-Base of glocal beside transformers'.")
    parser.add_argument("--pairs", type=int, default=9, help="how often each is run (default: %(default)s)")
    args = parser.parse_args()
    logging.set_verbosity_error()
    rows = []
    for what, build in (("GPT-2, 64 tokens", writing), ("BERT-Base, training step", training)):
        for precision in ("float32", "bf16"):
            times = take_turns(*build(precision), args.pairs)
            rows.append(compare(AIMS, f"{what}, {precision}", "ms", *times, other="transformers"))
    write(rows, RESULT, COLUMNS)


def shared(theirs: Any, **fields: Any) -> tuple[Any, Any]:
    """A model of ours with the weights of theirs, and theirs."""
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load_model(folder, **fields).eval(), theirs.eval()


def writing(precision: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    torch.manual_seed(0)
    config = GPT2Config(eos_token_id=None, bos_token_id=None)
    ours, theirs = shared(GPT2LMHeadModel(config), eos_id=None, bos_id=None, pad_id=None)
    ids = torch.randint(0, config.vocab_size, (1, PROMPT))
    mask = torch.ones_like(ids, dtype=torch.bool)
    greedy = DecodingConfig(beams=1, extra_length=WRITTEN)

    def our() -> list[int]:
        return generate(ours, ids, mask, greedy)[0][0].ids

    @torch.inference_mode()
    def their() -> list[int]:
        options = {"max_new_tokens": WRITTEN, "do_sample": False, "pad_token_id": 0}
        return theirs.generate(input_ids=ids, attention_mask=mask.long(), **options)[0, PROMPT:].tolist()

    pack(ours)
    if our() != their():
        raise SystemExit("the two write different texts: no comparison")
    if precision == "bf16":
        pack(ours.bfloat16())
        theirs.bfloat16()
    return our, their


def training(precision: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    torch.manual_seed(0)
    config = BertConfig()
    ours, theirs = shared(BertForPreTraining(config))
    ids = torch.randint(1000, config.vocab_size, (ROWS, LENGTH))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "token_type_ids": (torch.arange(LENGTH) >= LENGTH // 2).long().expand(ROWS, -1),
        "labels": ids.masked_fill(torch.rand(ROWS, LENGTH) >= 0.15, -100),
        "next_sentence_label": torch.randint(0, 2, (ROWS,)),
    }
    task = MaskedLanguage()

    def our_loss() -> torch.Tensor:
        return task.loss(ours, batch)

    def their_loss() -> torch.Tensor:
        return theirs(**batch).loss

    with torch.no_grad():
        torch.testing.assert_close(our_loss(), their_loss(), atol=1e-4, rtol=0)
    return step(ours, our_loss, precision), step(theirs, their_loss, precision)


def step(model: Any, loss: Callable[[], torch.Tensor], precision: str) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        model.train()
        with autocast(precision):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


if __name__ == "__main__":
    main()
