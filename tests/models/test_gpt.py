"""What is GPT's own: its sizes, its start, its two heads, its prompts and its limits."""

import pytest
import torch
from conftest import wake
from torch import nn

from glocal.errors import GlocalError
from glocal.models import create_model, load_model

SMALL = {"vocab_size": 19, "max_length": 16, "embed_dim": 24, "num_heads": 3, "depth": 2}
NONE = {"pad_id": None, "bos_id": None, "eos_id": None}


def gpt(name="gpt2", **fields):
    return wake(create_model(name, **SMALL | NONE | fields)).eval()


def ids(*shape):
    return torch.randint(SMALL["vocab_size"], shape)


# Radford et al. 2018 (117 million), 2019 (table 2, as its authors corrected it), Brown et al. 2020, table 2.1
SIZES = {  #      layers, width, heads, places, parameters
    "gpt": (12, 768, 12, 512, 117e6),
    "gpt2": (12, 768, 12, 1024, 124e6),
    "gpt2-medium": (24, 1024, 16, 1024, 355e6),
    "gpt2-large": (36, 1280, 20, 1024, 774e6),
    "gpt2-xl": (48, 1600, 25, 1024, 1558e6),
    "gpt3-small": (12, 768, 12, 2048, 125e6),
    "gpt3-medium": (24, 1024, 16, 2048, 350e6),
    "gpt3-large": (24, 1536, 16, 2048, 760e6),
    "gpt3-xl": (24, 2048, 16, 2048, 1.3e9),
    "gpt3-2.7b": (32, 2560, 32, 2048, 2.7e9),
    "gpt3-6.7b": (32, 4096, 32, 2048, 6.7e9),
    "gpt3-13b": (40, 5120, 40, 2048, 13.0e9),
    "gpt3-175b": (96, 12288, 96, 2048, 175e9),
}


@pytest.mark.parametrize("name", SIZES)
def test_named_sizes_are_the_papers(name):
    depth, width, heads, places, parameters = SIZES[name]
    with torch.device("meta"):
        model = create_model(name)
    assert len(model.blocks) == depth
    for block in model.blocks:
        assert block.mixer.attention.num_heads == heads
        assert block.mixer.attention.qkv.weight.shape == (3 * width, width)
        assert block.mlp.fc1.weight.shape == (4 * width, width)
        assert block.mlp.act.approximate == "tanh"
        assert block.norm1.eps == 1e-5
        assert block.pre_norm == (name != "gpt")
    assert isinstance(model.norm, nn.Identity) == (name == "gpt")
    assert model.pos_embed.shape == (places, width)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.02)


def test_nanogpts_size_for_a_cpu():
    model = create_model("gpt-tiny", vocab_size=65, **NONE)
    assert (len(model.blocks), *model.pos_embed.shape) == (4, 64, 128)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(0.8e6, rel=0.02)


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_it_starts_as_the_papers_say(name):
    model = create_model(name, vocab_size=500, depth=8, embed_dim=192, num_heads=3, **NONE)
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1:
            last = name == "gpt2" and key.endswith((".proj.weight", ".fc2.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / 4 if last else 0.02, rel=0.03), key
        elif key.endswith("bias"):
            assert not parameter.any()


@pytest.mark.parametrize("local", ["conv1d", "window"])
def test_local_heads_start_as_global_ones(local):
    shape = {"vocab_size": 500, "depth": 8, "embed_dim": 192, "num_heads": 2, **NONE}
    model = create_model("gpt2", **shape, local_heads=1, local=local, local_norm="layer", kernel_size=7)
    for key, parameter in model.named_parameters():
        if "mixer.local" in key and parameter.ndim == 2:
            last = key.endswith((".proj.weight", ".contract.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / 4 if last else 0.02, rel=0.03), key
        elif "mixer.local.depthwise.weight" in key:
            assert parameter.abs().max() <= 7**-0.5


@torch.no_grad()
def test_the_embeddings_answer():
    model, text = gpt(), ids(2, 7)
    features = model.forward_features(text)
    torch.testing.assert_close(model(text), features @ model.embedding.weight.T)
    torch.testing.assert_close(model.logits(features[:, 3]), model(text)[:, 3])
    torch.testing.assert_close(model.embed(text), model.embedding.weight[text] + model.pos_embed[:7])
    assert [name for name, tensor in model.state_dict().items() if 19 in tensor.shape] == ["embedding.weight"]


@torch.no_grad()
def test_a_classifier_reads_the_last_token_of_each_text():
    model, text = gpt(head="classification", num_classes=3), ids(3, 7)
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    expected = torch.cat([model(row[own][None]) for row, own in zip(text, mask, strict=True)])
    torch.testing.assert_close(model(text, mask), expected)
    last = model.forward_features(text)[:, -1]
    torch.testing.assert_close(model(text), last @ model.head.classifier.weight.T)


def test_another_head_keeps_all_but_the_classifier(tmp_path):
    language, text = gpt(), ids(2, 5)
    language.save_pretrained(tmp_path / "language")
    with pytest.raises(AttributeError):
        language.head  # noqa: B018
    classifier = load_model(tmp_path / "language", head="classification", num_classes=3).eval()
    assert torch.equal(classifier.forward_features(text), language.forward_features(text))
    classifier.labels = list("abc")
    classifier.save_pretrained(tmp_path / "classifier")
    other = load_model(tmp_path / "classifier", num_classes=5)
    assert other.labels is None
    assert other.head.classifier.weight.shape == (5, 24)
    again = load_model(tmp_path / "classifier", head="language", num_classes=2).eval()
    assert torch.equal(again(text), language(text))


@torch.no_grad()
def test_without_padding_no_mask_is_made():
    model, masks = gpt(), []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *args: masks.append(args[2]["mask"]), with_kwargs=True)
    for mask, made in ((torch.ones(2, 5), False), (torch.tensor([[0, 0, 0, 1, 1], [1] * 5]), True)):
        state = model.start(ids(2, 5), mask.bool(), beams=2, max_new_tokens=3)
        model.step(ids(4), state)
        assert len(masks) == 4
        assert {mask is not None for mask in masks} == {made}
        masks.clear()


@torch.no_grad()
def test_a_prompt_is_read_once_whichever_number_of_beams_goes_on():
    model, rows = gpt(), []
    model.blocks[0].register_forward_pre_hook(lambda _, args: rows.append(tuple(args[0].shape[:2])))
    model.start(ids(2, 5), torch.ones(2, 5).bool(), beams=3, max_new_tokens=3)
    model.start(
        ids(2, 1), torch.ones(2, 1).bool(), beams=3, max_new_tokens=3
    )  # all but the last token: nothing to read
    assert rows == [(2, 4)]


@torch.no_grad()
def test_what_fills_a_prompt_has_no_part_in_it_not_even_in_bf16():
    model = gpt().to(torch.bfloat16)
    mask = torch.arange(6) >= torch.tensor([[0], [4], [5]])
    prompts = ids(3, 6)
    a, b = model.start(prompts, mask, 1, 2), model.start(prompts.where(mask, (prompts + 7) % 19), mask, 1, 2)
    for token in (prompts[:, -1], ids(3)):
        logits = model.step(token, a)
        assert logits.isfinite().all()
        assert torch.equal(logits, model.step(token, b))


@torch.no_grad()
def test_a_short_prompt_may_still_write_where_a_long_one_has_ended():
    """Positions count a row's own tokens: the batch may be longer than any text may."""
    model = gpt()
    mask = torch.arange(14) >= torch.tensor([[0], [12]])
    text = ids(2, 14)
    state = model.start(text, mask, beams=1, max_new_tokens=15)
    for _ in range(3):
        model.step(text[:, -1], state)
    with pytest.raises(GlocalError, match="a text of 17 tokens; this GPT has learned 16 positions"):
        model.step(text[:, -1], state)
    state.select(torch.tensor([1]), torch.tensor([1]))
    written = torch.cat([text[1, 12:], text[1, -1:].repeat(2)])
    for _ in range(12):
        written = torch.cat([written, ids(1)])
        torch.testing.assert_close(model.step(written[-1:], state), model(written[None])[:, -1], atol=1e-5, rtol=1e-5)
    with pytest.raises(GlocalError, match="a text of 17 tokens"):
        model.step(ids(1), state)


@torch.no_grad()
def test_prompts_that_are_wrong_are_refused():
    model, behind = gpt(), torch.tensor([[True, True], [True, False]])
    for mask in (behind, torch.tensor([[True, True], [False, False]])):
        with pytest.raises(GlocalError, match="empty, or padded on the right"):
            model.start(ids(2, 2), mask, 1, 2)
    for run in (lambda: model(ids(1, 17)), lambda: model.start(ids(1, 18), torch.ones(1, 18).bool(), 1, 1)):
        with pytest.raises(GlocalError, match="a text of 17 tokens; this GPT has learned 16 positions"):
            run()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 3}, "give head='classification' too"),
        ({"eos_id": 19}, "eos_id 19 of a vocabulary of 19 tokens; give the tokenizer's, or None"),
        ({"pad_id": "<pad>"}, "expected of type int | None"),
        ({"causal": False}, "causal=True, cross=False"),
        ({"cross": True}, "causal=True, cross=False"),
        ({"local_heads": 1}, "set local_norm 'layer'"),
    ],
)
def test_what_is_no_gpt_is_refused(fields, message):
    with pytest.raises(GlocalError, match=message.replace("|", r"\|")):
        create_model("gpt2", **SMALL | NONE | fields)
