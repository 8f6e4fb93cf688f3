"""The base Transformer beside transformers' MarianMTModel and CTranslate2: decoding and training, same weights.

    python benchmarks/translation.py            # about ten minutes on 2 cores
    python benchmarks/translation.py --pairs 3  # quicker, and rougher

Writes results/speed-translation.csv. The weights are random and shared by all, as a Marian folder on disk; the token
that ends a sentence is made impossible, so that everyone writes 20 tokens for each of 16 sentences of 20. Two that are
compared take turns in one process; a ratio is their time divided by ours within such a pair, and the table gives the
median of all pairs and their quartiles.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ctranslate2
import sentencepiece
import torch
from ctranslate2.converters import TransformersConverter
from num2words import num2words
from timing import autocast, compare, take_turns, write
from torch.nn import functional as F
from transformers import MarianConfig, MarianMTModel
from transformers.utils import logging

from glocal.inference import DecodingConfig, generate
from glocal.layers.fused import pack
from glocal.models import load_model
from glocal.tasks import Translation, TranslationConfig

RESULT = Path(__file__).parents[1] / "results" / "speed-translation.csv"
COLUMNS = (
    *("what", "peer", "ours", "theirs", "unit", "ratio", "quartile1", "quartile3", "repeats", "at_least", "hope"),
    *("command", "commit", "machine", "torch_version", "transformers_version", "ctranslate2_version"),
)
SENTENCES, LENGTH, VOCABULARY, EOS = 16, 20, 37000, 0

AIMS = {  # at least, hoped for
    "greedy, float32, transformers float32": (2.5, 4.0),
    "greedy, float32, CTranslate2 float32": (1.0, 2.0),
    "greedy, bf16, CTranslate2 int8": (0.7, 1.5),
    "beam 4, float32, transformers float32": (2.0, 3.0),
    "beam 4, float32, CTranslate2 float32": (1.0, 2.0),
    "beam 4, bf16, CTranslate2 int8": (0.7, 1.5),
    "training step, float32, transformers": (1.0, 1.3),
    "training step, bf16, transformers": (1.3, 2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the base Transformer of glocal beside its peers.")
    parser.add_argument("--pairs", type=int, default=9, help="how often each is run (default: %(default)s)")
    args = parser.parse_args()
    logging.set_verbosity_error()
    rows = []
    with TemporaryDirectory() as folder:
        theirs = write_marian(Path(folder))
        ids = torch.randint(10, VOCABULARY - 10, (SENTENCES, LENGTH - 1))
        ids = torch.cat([ids, torch.full((SENTENCES, 1), EOS)], dim=1)
        ours = {kind: prepared(load_model(folder).to(kind)) for kind in (torch.float32, torch.bfloat16)}
        known = [f"t{i}" for i in range(VOCABULARY)]
        fast = {
            kind: ctranslate2.Translator(f"{folder}/fast", compute_type=kind, intra_threads=torch.get_num_threads())
            for kind in ("float32", "int8")
        }
        words = [[known[i] for i in row] for row in ids.tolist()]
        for name, beams in (("greedy", 1), ("beam 4", 4)):
            peers: list[tuple[str, torch.dtype, Callable[[], Any]]] = [
                ("float32, transformers float32", torch.float32, transformers_decode(theirs, ids, beams)),
                ("float32, CTranslate2 float32", torch.float32, fast_decode(fast["float32"], words, beams)),
                ("bf16, CTranslate2 int8", torch.bfloat16, fast_decode(fast["int8"], words, beams)),
            ]
            for what, kind, peer in peers:
                times = take_turns(decode(ours[kind], ids, beams), peer, args.pairs)
                rows.append(row(f"{name}, {what}", times))
        for precision in ("float32", "bf16"):
            steps = step(ours[torch.float32], our_loss, precision), step(theirs, their_loss, precision)
            rows.append(row(f"training step, {precision}, transformers", take_turns(*steps, args.pairs)))
    write(rows, RESULT, COLUMNS)


def row(what: str, times: list[list[float]]) -> dict[str, object]:
    what, peer = what.rpartition(", ")[::2]
    measured = compare(AIMS, f"{what}, {peer}", "ms", *times, other="theirs")
    return measured | {"what": what, "peer": peer}


def write_marian(folder: Path) -> MarianMTModel:
    """Write a random base model in Marian's layout, and CTranslate2's form of it; return it."""
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
    corpus = [num2words(number) for number in range(3000)]  # a tokenizer that nobody asks, but converters want
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_prefix=str(folder / side), vocab_size=60, minloglevel=2
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
    vocabulary = {"</s>": 0, "<unk>": 1} | {f"t{i}": i for i in range(2, VOCABULARY - 1)} | {"<pad>": VOCABULARY - 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer"}))
    TransformersConverter(str(folder)).convert(str(folder / "fast"))
    return model


def prepared(model: Any) -> Any:
    """As a Translator has it."""
    pack(model.eval())
    return model


def decode(model: Any, ids: torch.Tensor, beams: int) -> Callable[[], Any]:
    config = DecodingConfig(beams=beams, extra_length=0, length_penalty=1.0)
    return lambda: generate(model, ids, torch.ones_like(ids, dtype=torch.bool), config)


def transformers_decode(model: Any, ids: torch.Tensor, beams: int) -> Callable[[], Any]:
    options: dict[str, Any] = {
        "num_beams": beams,
        "max_new_tokens": LENGTH,
        "min_new_tokens": LENGTH,
        "do_sample": False,
    }

    @torch.inference_mode()
    def run() -> Any:
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)

    return run


def fast_decode(translator: ctranslate2.Translator, words: list[list[str]], beams: int) -> Callable[[], Any]:
    return lambda: translator.translate_batch(
        words, beam_size=beams, max_decoding_length=LENGTH, min_decoding_length=LENGTH, max_batch_size=SENTENCES
    )


def step(
    model: Any, loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor], precision: str
) -> Callable[[], None]:
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


def our_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return Translation(TranslationConfig(label_smoothing=0.1)).loss(model, batch)


def their_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(**{name: batch[name] for name in ("input_ids", "decoder_input_ids", "attention_mask")}).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), label_smoothing=0.1)


if __name__ == "__main__":
    main()
