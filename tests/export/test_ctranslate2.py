"""CTranslate2 writes the translations and the texts that our models write."""

import pytest
import torch
from conftest import wake
from tokenizers import Tokenizer as Inner

from glocal.data import Subwords, TokenizerConfig, learn_tokenizer
from glocal.errors import GlocalError
from glocal.export.exporter import export
from glocal.generation import DecodingConfig
from glocal.layers.block import uniform_blocks
from glocal.models import Transformer, TransformerConfig, create_model
from glocal.tasks import load

ctranslate2 = pytest.importorskip("ctranslate2")

SENTENCES = ["A man rides a bicycle.", "Two dogs, and 12 cats!", "Snow.", "The quick brown fox jumps over the dog."]


def translator(folder, tokenizer, **fields):
    block = {"embed_dim": 32, "num_heads": 4, "mlp_ratio": 2.0, "norm": "post", "activation": "relu", "norm_eps": 1e-5}
    kind = fields.pop("block", {})
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size + 3,  # embeddings without a token
        max_length=60,
        encoder=uniform_blocks(2, **block | kind),
        decoder=uniform_blocks(3, **block | kind, causal=True, cross=True),
        pad_id=tokenizer.pad_id,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        **fields,
    )
    model = wake(Transformer(config)).eval()
    torch.nn.init.normal_(model.embedding.weight, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save(folder)


@pytest.mark.parametrize(
    "fields",
    [{}, {"positions": "halves", "logit_bias": True}, {"block": {"norm": "pre", "activation": "gelu"}}],
    ids=["paper", "marian", "pre-norm"],
)
def test_the_same_translations(fields, tmp_path):
    tokenizer = Subwords.train(SENTENCES * 5, "bpe", 300)
    translator(tmp_path / "ours", tokenizer, **fields)
    expected = load(tmp_path / "ours", "cpu").predict(SENTENCES, DecodingConfig(beams=1, extra_length=12))
    export(tmp_path / "ours", tmp_path / "theirs", "ctranslate2")
    inner = Inner.from_file(str(tmp_path / "theirs" / "tokenizer.json"))
    theirs = ctranslate2.Translator(str(tmp_path / "theirs"), intra_threads=1)
    texts = []
    for sentence in SENTENCES:
        tokens = inner.encode(sentence).tokens
        [result] = theirs.translate_batch([tokens], beam_size=1, max_decoding_length=len(tokens) + 12)
        texts.append(inner.decode([inner.token_to_id(token) or 0 for token in result.hypotheses[0]]))
    assert texts == [one.text for one in expected]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("precision", ["float32", "fp16", "int8"])
def test_the_same_text(precision, tmp_path):
    tokenizer = learn_tokenizer(SENTENCES * 5, TokenizerConfig(kind="byte-bpe", vocab_size=280))
    ids = {name: getattr(tokenizer, name) for name in ("pad_id", "bos_id", "eos_id")}
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 2, "max_length": 64}
    model = wake(create_model("gpt-tiny", **shape, **ids, vocab_size=tokenizer.vocab_size)).eval()
    torch.nn.init.normal_(model.pos_embed, std=2.0)  # a place has its own token, by far the likeliest
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save(tmp_path / "ours")
    expected = load(tmp_path / "ours", "cpu").predict(SENTENCES, DecodingConfig(extra_length=16))
    export(tmp_path / "ours", tmp_path / "theirs", "ctranslate2", precision=precision)
    inner = Inner.from_file(str(tmp_path / "theirs" / "tokenizer.json"))
    theirs = ctranslate2.Generator(str(tmp_path / "theirs"), intra_threads=1)
    tokens = [inner.encode(sentence, add_special_tokens=False).tokens for sentence in SENTENCES]
    results = theirs.generate_batch(tokens, beam_size=1, max_length=16, include_prompt_in_result=False)
    if precision == "int8":  # rounding may choose between tokens that are nearly as likely
        written = [result.sequences_ids[0] for result in results]
        for prompt, ids in zip(SENTENCES, written, strict=True):
            given = inner.encode(prompt, add_special_tokens=False).ids
            with torch.inference_mode():
                logits = model(torch.tensor([given + ids]))[0, len(given) - 1 : -1]
            chosen = logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
            assert ((logits.amax(dim=1) - chosen) / logits.std(dim=1)).max() < 0.2
    else:
        assert [inner.decode(result.sequences_ids[0]) for result in results] == [one.text for one in expected]


def test_what_ctranslate2_has_not_is_refused(tiny_vit, tmp_path):
    tiny_vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(GlocalError, match="CTranslate2's models write text, and this is a vit; it can be for glocal, "):
        export(tmp_path / "vit", tmp_path / "out", "ctranslate2")
    tokenizer = Subwords.train(SENTENCES, "bpe", 262)
    translator(tmp_path / "wide", tokenizer, block={"qkv_ratio": 2.0})
    with pytest.raises(GlocalError, match=r"its blocks have qkv_ratio 2.0, and CTranslate2's have 1.0"):
        export(tmp_path / "wide", tmp_path / "out", "ctranslate2")
