"""llama.cpp writes the text that our models write, from the file alone."""

import json
from urllib.request import Request, urlopen

import pytest
import torch

from glocal.data import TokenizerConfig, learn_tokenizer
from glocal.errors import GlocalError
from glocal.export.exporter import export
from glocal.generation import DecodingConfig
from glocal.models import create_model
from glocal.tasks import load

pytest.importorskip("gguf")
xllamacpp = pytest.importorskip("xllamacpp")

TEXTS = [
    "The cat sat on the mat, and the dog's 12 fleas didn't mind at all.",
    "Một con mèo ngồi trên chiếu — và con chó thì không.\n  Ça coûte 3€ 😀.",
]
PROMPTS = ["The cat", "mèo 😀 3€"]
SHAPE = {"embed_dim": 32, "depth": 2, "num_heads": 2, "max_length": 128}


class Llama:
    """llama.cpp with one model, on one thread."""

    def __init__(self, folder):
        params = xllamacpp.CommonParams()
        params.model.path = str(folder / "model.gguf")
        params.n_ctx = SHAPE["max_length"]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.n_gpu_layers = 0
        params.verbosity = -1
        self.server = xllamacpp.Server(params)

    def write(self, prompt, count):
        """Return the text that greedy search adds, and its tokens, but those that end within a character."""
        request = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "logprobs": 1}
        answer = self.server.handle_completions(request)["choices"][0]
        return answer["text"], [token["id"] for token in answer["logprobs"]["content"]]

    def tokenize(self, text):
        """Return the tokens of a text."""
        body = json.dumps({"content": text, "parse_special": False}).encode()
        request = Request(f"{self.server.listening_address}/tokenize", body, {"Content-Type": "application/json"})
        with urlopen(request) as answer:
            return json.load(answer)["tokens"]


def writer(tokenizer, folder, **fields):
    """A GPT each of whose tensors counts, so that no token is the best everywhere, and which never ends a text."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_id", "bos_id", "eos_id")}
    model = create_model("gpt-tiny", **SHAPE | fields, **ids, vocab_size=tokenizer.vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1)
        model.embedding.weight[tokenizer.eos_id] = 0
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model


@torch.inference_mode()
def shortfall(model, prompt, text):
    """By how much a token's logit is below the best one at its place, at most, in standard deviations of all."""
    logits = model(torch.tensor([prompt + text]))[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(text)[:, None])[:, 0]
    return ((logits.amax(dim=1) - chosen) / logits.std(dim=1)).max().item()


@pytest.mark.parametrize("kind", ["byte-bpe", "characters"])
def test_the_same_tokens_and_the_same_greedy_text(kind, tmp_path):
    tokenizer = learn_tokenizer(TEXTS * 3, TokenizerConfig(kind=kind, vocab_size=300))
    writer(tokenizer, tmp_path / "ours")
    ours = load(tmp_path / "ours", "cpu")
    theirs = Llama(export(tmp_path / "ours", tmp_path / "gguf", "gguf"))
    for text in [*TEXTS, "a cat  sat\n\n on\tThe", "😀€ ç", "Zebras"]:
        known = [number for number in tokenizer.encodings([text], special=False)[0].ids if number != tokenizer.unk_id]
        assert theirs.tokenize(text) == known, text
    for prompt in PROMPTS:
        [expected] = ours.predict([prompt], DecodingConfig(extra_length=24))
        text, ids = theirs.write(prompt, 24)
        assert text.rstrip("�") == expected.text.rstrip("�")  # theirs lacks the start of a character at the end
        assert len(set(ids)) > 4


@pytest.mark.parametrize(("precision", "error"), [("fp16", 0.02), ("int8", 0.2)])
def test_fewer_bits_write_tokens_that_are_nearly_the_best(precision, error, tmp_path):
    tokenizer = learn_tokenizer(TEXTS * 3, TokenizerConfig(kind="characters"))
    model = writer(tokenizer, tmp_path / "ours")
    folder = export(tmp_path / "ours", tmp_path / "gguf", "gguf", precision=precision)
    for prompt in PROMPTS:
        _, ids = Llama(folder).write(prompt, 24)
        [given] = [encoding.ids for encoding in tokenizer.encodings([prompt], special=False)]
        assert len(ids) == 24
        assert shortfall(model, given, ids) < error
        assert shortfall(model, given, ids[::-1]) > 1


def test_what_llama_cpp_has_not_is_refused(byter, speller, tmp_path):
    for name, fields, tokenizer, reason in (
        ("post", {"norm": "post"}, byter, "its blocks have norm 'post', and llama.cpp's have 'pre'"),
        ("gelu", {"activation": "gelu"}, byter, "activation 'gelu'"),
        ("classes", {"head": "classification"}, byter, "this is a gpt for classification"),
        ("wordpiece", {}, speller, "a WordPiece that llama.cpp's GPT-2 cannot follow"),
    ):
        writer(tokenizer, tmp_path / name, **fields)
        with pytest.raises(
            GlocalError, match=f"cannot be written for gguf: .*{reason}.*; it can be for glocal, .*onnx"
        ):
            export(tmp_path / name, tmp_path / "out", "gguf")
    model = create_model(
        "gpt-tiny", **SHAPE | {"embed_dim": 40}, vocab_size=byter.vocab_size, pad_id=0, bos_id=0, eos_id=0
    )
    model.save_pretrained(tmp_path / "narrow")
    with pytest.raises(GlocalError, match="there is none beside this model"):
        export(tmp_path / "narrow", tmp_path / "out", "gguf")
    byter.save(tmp_path / "narrow")
    with pytest.raises(GlocalError, match=r"rows of 40 weights .*groups of 32"):
        export(tmp_path / "narrow", tmp_path / "out", "gguf", precision="int8")
    assert not (tmp_path / "out").exists()
