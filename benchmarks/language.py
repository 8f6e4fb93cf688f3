"""GPT-2 and BERT-Base beside transformers, CTranslate2, llama.cpp and ONNX Runtime, all with the same weights.

    python benchmarks/language.py            # about ten minutes on 2 cores
    python benchmarks/language.py --pairs 3  # quicker, and rougher

Writes results/speed-language-PROCESSOR.csv. The weights are random and shared by all. Before they are timed, outputs
are compared: texts token by token in float32, and by the logits of their tokens in fewer bits; BERT's logits; and the
loss of training, to 1e-4.

    writing     GPT-2 with 124 M parameters adds 64 tokens to one prompt of 16, greedily; no token ends the text; the
                time is that of the whole request, the prompt included
    inference   BERT-Base labels the tokens of 1 × 32 and 8 × 128 tokens without padding
    training    BERT-Base's pre-training on 8 × 128 tokens, of which 15 % are masked: forward, backward and AdamW

Two that are compared take turns in one process; a ratio is the peer's time divided by ours within such a pair, and the
table gives the median of all pairs and their quartiles. A peer that is not installed is left out.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timing import (
    COLUMNS,
    Aims,
    attempt,
    autocast,
    compare,
    inference_precisions,
    introduce,
    packed,
    take_turns,
    training_precisions,
    write,
)
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, BertForTokenClassification, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from glocal.generation import DecodingConfig, generate
from glocal.models import GPT, load_model
from glocal.tasks.masked_lm import MaskedLMObjective

PROMPT, WRITTEN = 16, 64
ROWS, LENGTH = 8, 128
SHAPES = ((1, 32), (8, 128))

NEARLY = 0.5
"""Standard deviations of logits by which a token of fewer bits may be below the best; a random token is by four."""

PEERS = {  # of writing, by our precision
    "float32": ("transformers float32", "CTranslate2 float32"),
    "fp16": ("llama.cpp f16",),
    "int8": ("CTranslate2 int8", "llama.cpp q8_0"),
    "bf16": ("transformers bf16",),
}

AIMS: Aims = {  # at least, hoped for
    ("GPT-2, 64 tokens, float32", "transformers float32"): (1.4, 2.0),
    ("GPT-2, 64 tokens, float32", "CTranslate2 float32"): (0.75, 1.0),
    ("GPT-2, 64 tokens, fp16", "llama.cpp f16"): (0.8, 1.1),
    ("GPT-2, 64 tokens, int8", "CTranslate2 int8"): (1.1, 1.6),
    ("GPT-2, 64 tokens, int8", "llama.cpp q8_0"): (0.65, 1.1),
    ("GPT-2, 64 tokens, bf16", "transformers bf16"): (1.4, 1.9),
    ("BERT-Base training step, float32", "transformers float32"): (1.1, 1.4),
    ("BERT-Base training step, bf16", "transformers bf16"): (1.4, 2.0),
} | {
    (f"BERT-Base inference, {rows} × {length}, {count}, {precision}", f"ONNX Runtime {precision}"): (0.95, 1.2)
    for rows, length in SHAPES
    for count in ("1 thread", "all threads")
    for precision in ("float32", "int8")
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time GPT-2 and BERT-Base of glocal beside other libraries.")
    parser.add_argument("--pairs", type=int, default=9, help="how often each is run at most (default: %(default)s)")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    introduce()
    rows = writing(args.pairs) + inference(args.pairs) + training(args.pairs)
    versions = (f"{name}_version" for name in ("transformers", "ctranslate2", "xllamacpp", "onnxruntime"))
    write(rows, "speed-language", (*COLUMNS, *versions))


def shared(theirs: Any, folder: str | Path, **fields: Any) -> Any:
    """Save a model of transformers, and return ours with its weights."""
    theirs.eval().save_pretrained(folder)
    return load_model(folder, **fields).eval()


def writing(pairs: int) -> list[dict[str, object]]:
    torch.manual_seed(0)
    config = GPT2Config(eos_token_id=None, bos_token_id=None)
    theirs = GPT2LMHeadModel(config)
    prompt = torch.randint(0, config.vocab_size, (1, PROMPT))
    rows = []
    with TemporaryDirectory() as folder:
        ours = shared(theirs, folder, eos_id=None, bos_id=None, pad_id=None)
        text = our_writer(ours, prompt)()
        for precision in inference_precisions():
            what = f"GPT-2, 64 tokens, {precision}"
            with attempt(what):
                write_text = our_writer(packed(ours, precision), prompt)
                check_text(write_text(), text, precision, ours, prompt)
                for peer in PEERS[precision]:
                    with attempt(f"{what}, {peer}"):
                        write_theirs = their_writer(peer, ours, theirs, Path(folder), prompt)
                        check_text(write_theirs(), text, peer, ours, prompt)
                        rows.append(compare(AIMS, what, peer, "ms", *take_turns(write_text, write_theirs, pairs)))
    return rows


def check_text(written: list[int], expected: list[int], by: str, model: GPT, prompt: Tensor) -> None:
    """Raise where a text has another length, other tokens in float32, or in fewer bits tokens that are unlikely."""
    if len(written) != WRITTEN or (by.endswith("float32") and written != expected):
        raise ValueError(f"{by} writes another text: {written}, not {expected}")
    if (distance := shortfall(model, prompt, written)) > NEARLY:
        raise ValueError(f"{by} writes tokens {distance:.2f} standard deviations below the model's, over {NEARLY}")


@torch.inference_mode()
def shortfall(model: GPT, prompt: Tensor, text: list[int]) -> float:
    """Return by how much a token's logit is below the best one at its place, in standard deviations of all; at most."""
    tokens = torch.tensor([text])
    logits = model(torch.cat([prompt, tokens], dim=1))[0, prompt.shape[1] - 1 : -1]
    chosen = logits.gather(1, tokens.T)[:, 0]
    return ((logits.amax(dim=1) - chosen) / logits.std(dim=1)).max().item()


def our_writer(model: Any, prompt: Tensor) -> Callable[[], list[int]]:
    mask, greedy = torch.ones_like(prompt, dtype=torch.bool), DecodingConfig(beams=1, extra_length=WRITTEN)
    return lambda: generate(model, prompt, mask, greedy)[0][0].ids


def their_writer(peer: str, ours: GPT, theirs: Any, folder: Path, prompt: Tensor) -> Callable[[], list[int]]:
    """Return what writes the text with a peer; `folder` has the weights in transformers' layout."""
    library, precision = peer.split()
    if library == "transformers":
        return transformers_writer(theirs.bfloat16() if precision == "bf16" else theirs, prompt)
    if library == "CTranslate2":
        return ctranslate2_writer(folder, precision, prompt)
    from llamacpp import Writer, write_gguf

    write_gguf(ours, folder / "model.gguf", precision)
    writer = Writer(folder / "model.gguf", PROMPT + WRITTEN)
    return lambda: writer.write(prompt[0].tolist(), WRITTEN)


def transformers_writer(model: Any, prompt: Tensor) -> Callable[[], list[int]]:
    mask = torch.ones_like(prompt)

    @torch.inference_mode()
    def run() -> list[int]:
        options = {"max_new_tokens": WRITTEN, "do_sample": False, "pad_token_id": 0}
        return model.generate(input_ids=prompt, attention_mask=mask, **options)[0, PROMPT:].tolist()

    return run


def ctranslate2_writer(folder: Path, precision: str, prompt: Tensor) -> Callable[[], list[int]]:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    converted = folder / "ctranslate2"
    if not converted.exists():
        size = GPT2Config().vocab_size
        vocabulary = WordLevel({f"t{token}": token for token in range(size)}, unk_token="t0")
        last = f"t{size - 1}"  # the converter needs special tokens; min_length keeps this one from being written
        special = {"bos_token": last, "eos_token": last, "unk_token": last}
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), **special).save_pretrained(folder)
        TransformersConverter(str(folder)).convert(str(converted))
    threads = torch.get_num_threads()
    generator = ctranslate2.Generator(str(converted), compute_type=precision, intra_threads=threads, inter_threads=1)
    words = [f"t{token}" for token in prompt[0].tolist()]
    options: dict[str, Any] = {"beam_size": 1, "max_length": WRITTEN, "min_length": WRITTEN}

    def run() -> list[int]:
        return generator.generate_batch([words], include_prompt_in_result=False, **options)[0].sequences_ids[0]

    return run


def inference(pairs: int) -> list[dict[str, object]]:
    torch.manual_seed(0)
    config = BertConfig()
    theirs = BertForTokenClassification(config)
    rows = []
    with TemporaryDirectory() as folder:
        ours = shared(theirs, folder)
    for shape in SHAPES:
        what = "BERT-Base inference, {} × {}".format(*shape)
        with attempt(f"{what}, ONNX Runtime"):
            from onnx_runtime import compare_inference

            ids = torch.randint(1000, config.vocab_size, shape)
            rows += compare_inference(what, AIMS, ours, theirs, ids, pairs)
    return rows


def training(pairs: int) -> list[dict[str, object]]:
    rows = []
    for precision in training_precisions():
        what, peer = f"BERT-Base training step, {precision}", f"transformers {precision}"
        with attempt(f"{what}, {peer}"):
            rows.append(compare(AIMS, what, peer, "ms", *take_turns(*training_steps(precision), pairs)))
    return rows


def training_steps(precision: str) -> tuple[Callable[[], None], Callable[[], None]]:
    torch.manual_seed(0)
    config = BertConfig()
    theirs = BertForPreTraining(config)
    with TemporaryDirectory() as folder:
        ours = shared(theirs, folder)
    ids = torch.randint(1000, config.vocab_size, (ROWS, LENGTH))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids, dtype=torch.bool),
        "token_type_ids": (torch.arange(LENGTH) >= LENGTH // 2).long().expand(ROWS, -1),
        "labels": ids.masked_fill(torch.rand(ROWS, LENGTH) >= 0.15, -100),
        "next_sentence_label": torch.randint(0, 2, (ROWS,)),
    }
    task = MaskedLMObjective()

    def our_loss() -> Tensor:
        return task.loss(ours, batch).sum()

    def their_loss() -> Tensor:
        return theirs(**batch).loss

    with torch.no_grad():
        torch.testing.assert_close(our_loss(), their_loss(), atol=1e-4, rtol=0)
    return step(ours, our_loss, precision), step(theirs, their_loss, precision)


def step(model: Any, loss: Callable[[], Tensor], precision: str) -> Callable[[], None]:
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
