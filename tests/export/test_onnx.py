"""ONNX Runtime computes what the models do, for other batches and lengths than were traced.

torch traces a graph in seconds, however small its model: one of each kind is fast, and all others are slow.
"""

import json

import jaxtyping
import numpy as np
import pytest
import torch
from conftest import TINY, wake

from glocal.cli import main
from glocal.errors import GlocalError
from glocal.export import onnx
from glocal.export.exporter import export
from glocal.layers.block import uniform_blocks
from glocal.models import Transformer, TransformerConfig, create_model
from glocal.tasks import load

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

SHAPE = {"embed_dim": 16, "depth": 1, "num_heads": 2, "max_length": 40}
MIXED = {"embed_dim": 12, "num_heads": 3, "local_heads": 2, "kernel_size": 3, "expand_ratio": 2, "mlp_ratio": 2.0}
"""A block of GLiT's."""


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """Sizes are symbols while a graph is traced, which are no int to a checker of types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def run(folder, inputs, name="model"):
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}
    outputs = session.run(None, {key: np.asarray(value) for key, value in inputs.items() if key in taken})
    return dict(zip([one.name for one in session.get_outputs()], outputs, strict=True))


def padded(batch, tokens, vocab_size):
    ids = torch.randint(5, vocab_size, (batch, tokens))
    lengths = torch.arange(tokens, tokens - batch, -1).clamp(min=1)
    return ids, torch.arange(tokens) < lengths[:, None]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        pytest.param("deit-tiny-distilled", TINY, marks=pytest.mark.slow),
        ("glit-tiny", {"image_size": 32, "patch_size": 8, "num_classes": 3, "blocks": [MIXED]}),
        pytest.param("timm:resnet10t", {"num_classes": 3, "image_size": 64}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_images(name, fields, tmp_path):
    model = wake(create_model(name, **fields)).eval()
    model.labels = [f"class {number}" for number in range(model.config.num_classes)]
    model.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "onnx", "onnx")
    for batch in (1, 5):
        pixels = torch.randn(batch, 3, *model.config.image_size)
        found = run(tmp_path / "onnx", {"pixel_values": pixels})["logits"]
        with torch.inference_mode():
            np.testing.assert_allclose(found, model(pixels).numpy(), atol=1e-4)
    assert json.loads((tmp_path / "onnx" / "labels.json").read_text()) == model.labels
    prepared = json.loads((tmp_path / "onnx" / "preprocessing.json").read_text())
    assert prepared["image_size"] == list(model.config.image_size)


@pytest.mark.parametrize(
    "head",
    ["spans", *(pytest.param(head, marks=pytest.mark.slow) for head in ("pretraining", "classification", "tagging"))],
)
def test_bert_with_each_head(head, speller, tmp_path):
    classes = {"num_classes": 3} if head in ("classification", "tagging") else {}
    model = wake(create_model("bert-tiny", **SHAPE, **classes, head=head, vocab_size=speller.vocab_size)).eval()
    model.save_pretrained(tmp_path / "ours")
    speller.save(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "onnx", "onnx")
    for batch, tokens in ((1, 1), (2, 30), (4, 7)):
        ids, mask = padded(batch, tokens, speller.vocab_size)
        segments = (torch.arange(tokens) > tokens // 2).long().repeat(batch, 1)
        with torch.inference_mode():
            expected = model(ids, mask, segments).numpy()
        found = run(tmp_path / "onnx", {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": segments})
        if head == "spans":
            found = {"logits": np.stack([found["start_logits"], found["end_logits"]], axis=-1)}
        np.testing.assert_allclose(found["logits"], expected, atol=1e-4)
    assert (tmp_path / "onnx" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_texts_with_local_heads(speller, tmp_path):
    block = {"embed_dim": 16, "num_heads": 4, "norm": "post", "local_heads": 2, "kernel_size": 3}
    blocks = [block | {"local": "conv1d", "local_norm": "layer"}, block | {"local": "window"}]
    fields = {"head": "tagging", "num_classes": 3, "max_length": 40, "vocab_size": speller.vocab_size}
    model = wake(create_model("bert-tiny", **fields, blocks=blocks)).eval()
    model.save_pretrained(tmp_path / "ours")
    speller.save(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "onnx", "onnx")
    ids, mask = padded(4, 9, speller.vocab_size)
    given = {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": torch.zeros_like(ids)}
    found = run(tmp_path / "onnx", given)["logits"]
    with torch.inference_mode():
        np.testing.assert_allclose(found[mask], model(ids, mask).numpy()[mask], atol=1e-4)
    for other in ("transformers", "ctranslate2", "gguf"):
        with pytest.raises(GlocalError, match=r"it can be for glocal, onnx$"):
            export(tmp_path / "ours", tmp_path / "out", other)


def test_a_gpt_with_local_heads_is_refused_where_there_are_none(byter, tmp_path):
    ids = {"pad_id": 0, "bos_id": 0, "eos_id": 0}
    shape = SHAPE | {"local_heads": 1, "local_norm": "layer", "kernel_size": 4}
    model = create_model("gpt-tiny", **shape, **ids, vocab_size=byter.vocab_size)
    model.save_pretrained(tmp_path / "ours")
    byter.save(tmp_path / "ours")
    for other, whose in (("gguf", "llama.cpp's"), ("ctranslate2", "CTranslate2's")):
        said = f"its blocks have local_heads 1, and {whose} have 0; it can be for glocal, onnx$"
        with pytest.raises(GlocalError, match=said):
            export(tmp_path / "ours", tmp_path / "out", other)
    with pytest.raises(GlocalError, match="this model has local heads; leave --cache out"):
        export(tmp_path / "ours", tmp_path / "out", "onnx", cache=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_pairs_are_classified_from_the_tokenizer_beside_the_graph(speller, tmp_path):
    from tokenizers import Tokenizer

    model = wake(
        create_model("bert-tiny", **SHAPE, head="classification", num_classes=3, vocab_size=speller.vocab_size)
    )
    model.labels = ["bad", "fair", "good"]
    model.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path / "ours")
    speller.save(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "onnx", "onnx")
    [expected] = load(tmp_path / "ours", "cpu").predict([("one", "two words")], top=3)
    text = Tokenizer.from_file(str(tmp_path / "onnx" / "tokenizer.json")).encode("one", "two words")
    given = {"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}
    [logits] = run(tmp_path / "onnx", {name: [ids] for name, ids in given.items()})["logits"]
    labels = json.loads((tmp_path / "onnx" / "labels.json").read_text())
    probabilities = 1 / (1 + np.exp(-logits))
    assert dict(zip(labels, probabilities.tolist(), strict=True)) == pytest.approx(dict(expected), abs=1e-4)


@pytest.mark.slow
def test_gpt_as_a_classifier(tmp_path):
    fields = SHAPE | {
        "head": "classification",
        "num_classes": 4,
        "vocab_size": 50,
        "bos_id": 0,
        "eos_id": 0,
        "pad_id": 0,
    }
    model = wake(create_model("gpt-tiny", **fields)).eval()
    model.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "onnx", "onnx")
    ids, mask = padded(5, 12, 50)
    with torch.inference_mode():
        expected = model(ids, mask).numpy()
    found = run(tmp_path / "onnx", {"input_ids": ids, "attention_mask": mask.long()})
    np.testing.assert_allclose(found["logits"], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("local", ["conv1d", "window"])
def test_gpt_with_local_heads(local, tmp_path):
    special = {"vocab_size": 20, "pad_id": 0, "bos_id": 0, "eos_id": 0}
    heads = {"local_heads": 1, "local": local, "local_norm": "layer", "kernel_size": 3}
    model = wake(create_model("gpt-tiny", **SHAPE, **special, **heads)).eval()
    model.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "onnx", "onnx")
    for tokens in (2, 11):
        text = torch.randint(20, (2, tokens))
        with torch.inference_mode():
            expected = model(text).numpy()
        np.testing.assert_allclose(run(tmp_path / "onnx", {"input_ids": text})["logits"], expected, atol=1e-4)


@pytest.mark.slow
def test_gpt_writes_the_same_text_step_by_step(byter, tmp_path):
    ids = {"pad_id": 0, "bos_id": 0, "eos_id": 0}
    model = wake(create_model("gpt-tiny", **SHAPE, **ids, vocab_size=byter.vocab_size)).eval()
    model.save_pretrained(tmp_path / "ours")
    byter.save(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "onnx", "onnx", cache=True)
    text = torch.randint(1, byter.vocab_size, (2, 5))
    found = run(tmp_path / "onnx", {"input_ids": text})
    for _ in range(4):
        with torch.inference_mode():
            expected = model(text).numpy()
        np.testing.assert_allclose(found["logits"][:, -1], expected[:, -1], atol=1e-4)
        new = found["logits"][:, -1].argmax(axis=-1)[:, None]
        text = torch.cat([text, torch.from_numpy(new)], dim=1)
        past = {name.replace("present", "past_key_values"): found[name] for name in found if name != "logits"}
        found = run(tmp_path / "onnx", {"input_ids": new, **past}, "step")


def translator(vocab_size=30):
    block = {"embed_dim": 16, "num_heads": 2, "norm": "post", "activation": "relu"}
    config = TransformerConfig(
        vocab_size=vocab_size,
        max_length=40,
        encoder=uniform_blocks(1, **block),
        decoder=uniform_blocks(2, **block, causal=True, cross=True),
    )
    return wake(Transformer(config)).eval()


@pytest.mark.slow
def test_the_transformer_whole_and_step_by_step(tmp_path):
    model = translator()
    model.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "onnx", "onnx", cache=True)
    ids, mask = padded(3, 7, 30)
    target = torch.randint(3, 30, (3, 4))
    with torch.inference_mode():
        expected = model(ids, target, mask).numpy()
    source = {"input_ids": ids, "attention_mask": mask.long()}
    whole = run(tmp_path / "onnx", source | {"decoder_input_ids": target})["logits"]
    np.testing.assert_allclose(whole, expected, atol=1e-4)
    context = run(tmp_path / "onnx", source, "encoder")
    past = {
        f"past_key_values.{block}.{part}": np.zeros((3, 2, 0, 8), np.float32)
        for block in range(2)
        for part in ("key", "value")
    }
    for place in range(4):
        given = {"decoder_input_ids": target[:, place : place + 1], "attention_mask": mask.long()}
        found = run(tmp_path / "onnx", given | context | past, "step")
        np.testing.assert_allclose(found["logits"][:, 0], expected[:, place], atol=1e-4)
        past = {name.replace("present", "past_key_values"): found[name] for name in found if name != "logits"}


@pytest.mark.slow
def test_int8_is_smaller_and_nearly_the_same(tmp_path, capsys):
    fields = {"embed_dim": 128, "depth": 2, "num_heads": 2, "image_size": 32, "patch_size": 8, "num_classes": 5}
    model = wake(create_model("vit-tiny", **fields)).eval()
    model.save_pretrained(tmp_path / "ours")
    sizes = {}
    for precision in ("float32", "int8"):
        folder = tmp_path / precision
        main(["export", str(tmp_path / "ours"), "--to", "onnx", "--precision", precision, "-o", str(folder)])
        sizes[precision] = (folder / "model.onnx").stat().st_size
    assert sizes["int8"] < 0.35 * sizes["float32"]
    pixels = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        ours = model(pixels).flatten()
    theirs = torch.from_numpy(run(tmp_path / "int8", {"pixel_values": pixels})["logits"]).flatten()
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.95
    assert not torch.equal(ours, theirs)


@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_refused(tiny_vit, tmp_path, monkeypatch):
    tiny_vit.save_pretrained(tmp_path / "ours")
    write = onnx.write_graph

    def spoil(graph, file):
        with torch.no_grad():
            tiny_vit_of(graph).head.classifier.bias[0] += 0.01
        write(graph, file)
        with torch.no_grad():
            tiny_vit_of(graph).head.classifier.bias[0] -= 0.01

    def tiny_vit_of(graph):
        return graph.module

    monkeypatch.setattr(onnx, "write_graph", spoil)
    with pytest.raises(GlocalError, match=r"logits of model.onnx is off by .* not exported"):
        export(tmp_path / "ours", tmp_path / "onnx", "onnx")
    assert not (tmp_path / "onnx").exists()


def test_what_has_no_graph_says_so(tmp_path, tiny_vit):
    create_model("lstm-tiny", vocab_size=20, embed_dim=16, hidden_dim=8).save_pretrained(tmp_path / "lstm")
    with pytest.raises(GlocalError, match=r"lstm reads its texts by their lengths.* it can be for glocal$"):
        export(tmp_path / "lstm", tmp_path / "out", "onnx")
    tiny_vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(
        GlocalError, match="onnx of a vit with a cache; single steps are written by onnx, of gpt and transformer"
    ):
        export(tmp_path / "vit", tmp_path / "out", "onnx", cache=True)
    with pytest.raises(GlocalError, match="onnx in 'fp16'; expected the precision float32, int8"):
        export(tmp_path / "vit", tmp_path / "out", "onnx", precision="fp16")


def test_local_heads_are_not_written_step_by_step(tmp_path):
    ids = {"vocab_size": 20, "pad_id": 0, "bos_id": 0, "eos_id": 0}
    create_model("gpt-tiny", **SHAPE, **ids, local_heads=1, local_norm="layer", kernel_size=3).save_pretrained(
        tmp_path / "gpt"
    )
    with pytest.raises(GlocalError, match="local heads; leave --cache out"):
        export(tmp_path / "gpt", tmp_path / "out", "onnx", cache=True)


def test_an_output_that_is_not_ours_is_refused():
    ours = np.array([[100.0, -3.0, 2.0]], np.float32)
    onnx.check_close("logits", ours + 0.009, ours, integers=False)
    with pytest.raises(GlocalError, match=r"logits is off by 0.0002 of its size in ONNX Runtime.*not exported"):
        onnx.check_close("logits", ours + 0.02, ours, integers=False)
    with pytest.raises(GlocalError, match="off by nan"):
        onnx.check_close("logits", ours * np.nan, ours, integers=False)
    with pytest.raises(GlocalError, match=r"the shape \(3, 1\)"):
        onnx.check_close("logits", ours.T, ours, integers=False)
    onnx.check_close("logits", ours * 1.1, ours, integers=True)
    with pytest.raises(GlocalError, match=r"cosine of 0.707 .* export it in float32"):
        onnx.check_close("logits", np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]), integers=True)
