"""The base Transformer beside transformers' MarianMTModel and CTranslate2: decoding and training, same weights.

    python benchmarks/translation.py            # about five minutes on 2 cores
    python benchmarks/translation.py --pairs 3  # quicker, and rougher

Writes results/speed-translation-PROCESSOR.csv. The weights are random and shared by all, as a Marian folder on disk;
the token that ends a sentence is made impossible, so that everyone writes 20 tokens for each of 16 sentences of 20. The
texts are compared before they are timed: in float32 they are the same, in fewer bits as long. "best" is ours in the
precision that is the fastest here. Two that are compared take turns in one process; a ratio is the peer's time divided
by ours within such a pair, and the table gives the median of all pairs and their quartiles.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sentencepiece
import torch
from num2words import num2words
from timing import (
    COLUMNS,
    Aims,
    attempt,
    autocast,
    compare,
    inference_precisions,
    introduce,
    native_bf16,
    packed,
    take_turns,
    training_precisions,
    write,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import MarianConfig, MarianMTModel
from transformers.utils import logging

from glocal.generation import DecodingConfig, generate
from glocal.models import load_model
from glocal.tasks.translation import TranslationConfig, TranslationObjective

SENTENCES, LENGTH, VOCABULARY, EOS = 16, 20, 37000, 0
TOKENS = ["</s>", "<unk>", *(f"t{number}" for number in range(2, VOCABULARY - 1)), "<pad>"]
NUMBERS = {token: number for number, token in enumerate(TOKENS)}
SEARCHES = {"greedy": 1, "beam 4": 4}  # beams

PEERS = (  # our precision, and what it is compared with
    ("float32", "transformers float32"),
    ("float32", "CTranslate2 float32"),
    ("int8", "CTranslate2 int8"),
    ("best", "CTranslate2 int8"),
)

AIMS: Aims = {  # at least, hoped for
    ("greedy, float32", "transformers float32"): (2.5, 4.0),
    ("greedy, float32", "CTranslate2 float32"): (0.95, 1.2),
    ("greedy, int8", "CTranslate2 int8"): (0.9, 1.2),
    ("beam 4, float32", "transformers float32"): (2.0, 3.0),
    ("beam 4, float32", "CTranslate2 float32"): (0.9, 1.2),
    ("beam 4, int8", "CTranslate2 int8"): (0.85, 1.2),
    ("training step, float32", "transformers float32"): (1.0, 1.3),
    ("training step, bf16", "transformers bf16"): (1.3, 2.0),
}
if native_bf16():
    AIMS = {**AIMS, ("greedy, best", "CTranslate2 int8"): (1.2, 1.5), ("beam 4, best", "CTranslate2 int8"): (1.1, 1.5)}

Decoder = Callable[[], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the base Transformer of glocal beside its peers.")
    parser.add_argument("--pairs", type=int, default=9, help="how often each is run at most (default: %(default)s)")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    introduce()
    with TemporaryDirectory() as folder:
        theirs = write_marian(Path(folder))
        rows = decoding(theirs, Path(folder), args.pairs) + training(theirs, folder, args.pairs)
    write(rows, "speed-translation", (*COLUMNS, "precision", "transformers_version", "ctranslate2_version"))


def decoding(theirs: MarianMTModel, folder: Path, pairs: int) -> list[dict[str, object]]:
    ids = torch.randint(10, VOCABULARY - 10, (SENTENCES, LENGTH - 1))
    ids = torch.cat([ids, torch.full((SENTENCES, 1), EOS)], dim=1)
    ours = load_model(folder)
    model = cache(lambda precision: packed(ours, precision))
    translator = cache(lambda precision: open_ctranslate2(folder, precision))
    rows = []
    for search, beams in SEARCHES.items():
        decoders = {}
        for precision in inference_precisions():
            with attempt(f"{search}, {precision}"):
                decoders[precision] = our_decoder(model(precision), ids, beams)
                decoders[precision]()
        expected = decoders["float32"]()
        fastest = min(decoders, key=lambda precision: seconds(decoders[precision]))
        print(f"{search}: the fastest of ours is {fastest}")
        for precision, peer in PEERS:
            what = f"{search}, {precision}"
            with attempt(f"{what}, {peer}"):
                chosen = fastest if precision == "best" else precision
                decode = decoders[chosen]
                if peer.startswith("transformers"):
                    decode_theirs = transformers_decoder(theirs, ids, beams)
                else:
                    decode_theirs = ctranslate2_decoder(translator(peer.split()[1]), ids, beams)
                check_texts(decode_theirs(), expected, peer)
                row = compare(AIMS, what, peer, "ms", *take_turns(decode, decode_theirs, pairs))
                rows.append(row | {"precision": chosen})
    return rows


def training(theirs: MarianMTModel, folder: str, pairs: int) -> list[dict[str, object]]:
    ours, rows = load_model(folder), []
    for precision in training_precisions():
        what, peer = f"training step, {precision}", f"transformers {precision}"
        with attempt(f"{what}, {peer}"):
            steps = step(ours, our_loss, precision), step(theirs, their_loss, precision)
            rows.append(compare(AIMS, what, peer, "ms", *take_turns(*steps, pairs)))
    return rows


def check_texts(written: list[list[int]], expected: list[list[int]], peer: str) -> None:
    """Raise where texts have other lengths, or other tokens in float32."""
    if [*map(len, written)] != [*map(len, expected)]:
        raise ValueError(f"{peer} writes texts of {[*map(len, written)]} tokens, not {[*map(len, expected)]}")
    same = sum(one == other for one, other in zip(written, expected, strict=True))
    if peer.endswith("float32") and same < SENTENCES:
        raise ValueError(f"{peer} writes {same} of {SENTENCES} texts as ours are")


def seconds(run: Callable[[], object]) -> float:
    """Return the least time of three runs."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def write_marian(folder: Path) -> MarianMTModel:
    """Write a random base model in Marian's layout, and return it."""
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=VOCABULARY,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        activation_function="relu",
        max_position_embeddings=512,
        scale_embedding=True,
        pad_token_id=VOCABULARY - 1,
        decoder_start_token_id=VOCABULARY - 1,
        eos_token_id=EOS,
        forced_eos_token_id=None,
        init_std=0.04,
    )
    model = MarianMTModel(config).eval()
    model.final_logits_bias[0, EOS] = -1e4  # sentences do not end
    model.save_pretrained(folder)
    corpus = [num2words(number) for number in range(3000)]  # converters want a tokenizer; none is used
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_prefix=str(folder / side), vocab_size=60, minloglevel=2
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
    (folder / "vocab.json").write_text(json.dumps(NUMBERS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer"}))
    return model


def our_decoder(model: Any, ids: Tensor, beams: int) -> Decoder:
    mask, config = torch.ones_like(ids, dtype=torch.bool), DecodingConfig(beams, length_penalty=1.0, extra_length=0)
    return lambda: [hypotheses[0].ids for hypotheses in generate(model, ids, mask, config)]


def transformers_decoder(model: Any, ids: Tensor, beams: int) -> Decoder:
    options: dict[str, Any] = {
        "num_beams": beams,
        "max_new_tokens": LENGTH,
        "min_new_tokens": LENGTH,
        "do_sample": False,
    }

    @torch.inference_mode()
    def run() -> list[list[int]]:
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[:, 1:].tolist()

    return run


def open_ctranslate2(folder: Path, precision: str) -> Any:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    converted = folder / "ctranslate2"
    if not converted.exists():
        TransformersConverter(str(folder)).convert(str(converted))
    return ctranslate2.Translator(str(converted), compute_type=precision, intra_threads=torch.get_num_threads())


def ctranslate2_decoder(translator: Any, ids: Tensor, beams: int) -> Decoder:
    words = [[TOKENS[number] for number in row] for row in ids.tolist()]
    options: dict[str, Any] = {"max_decoding_length": LENGTH, "min_decoding_length": LENGTH}

    def run() -> list[list[int]]:
        results = translator.translate_batch(words, beam_size=beams, max_batch_size=SENTENCES, **options)
        return [[NUMBERS[word] for word in result.hypotheses[0]] for result in results]

    return run


def step(model: Any, loss: Callable[[Any, dict[str, Tensor]], Tensor], precision: str) -> Callable[[], None]:
    """Forward, backward and Adam, for 64 pairs of sentences of 20 tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    pairs = 64
    batch = {
        name: torch.randint(10, VOCABULARY - 10, (pairs, LENGTH))
        for name in ("input_ids", "decoder_input_ids", "labels")
    }
    batch["attention_mask"] = torch.ones(pairs, LENGTH, dtype=torch.bool)

    def run() -> None:
        model.train()
        with autocast(precision):
            value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def our_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return TranslationObjective(TranslationConfig(label_smoothing=0.1)).loss(model, batch)


def their_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = model(**{name: batch[name] for name in ("input_ids", "decoder_input_ids", "attention_mask")}).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), label_smoothing=0.1)


if __name__ == "__main__":
    main()
