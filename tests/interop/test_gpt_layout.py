"""transformers' GPTs with random weights answer as ours with the same, whichever side wrote them down: 1e-5."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import transformers
from conftest import wake

from glocal.errors import GlocalError
from glocal.export.exporter import export
from glocal.interop import gpt as gpt_layout
from glocal.models import GPT, NAMED_CONFIGS, create_model, load_model
from glocal.models.config import override

SHAPE = {"vocab_size": 61, "n_positions": 16, "n_embd": 48, "n_layer": 3, "n_head": 4}
SPECIAL = {"bos_token_id": 60, "eos_token_id": 60, "pad_token_id": 59}
LABELS = {"id2label": dict(enumerate("abcde"))}
THEIRS = {
    "GPT2LMHeadModel": SPECIAL,
    "GPT2Model": {"n_inner": 100, "activation_function": "gelu", "bos_token_id": 1, "eos_token_id": 2},
    "GPT2ForSequenceClassification": SPECIAL | LABELS | {"n_embd": 36, "n_head": 3, "layer_norm_epsilon": 1e-3},
    "OpenAIGPTLMHeadModel": {},
    "OpenAIGPTModel": {"afn": "relu"},
    "OpenAIGPTForSequenceClassification": LABELS | {"afn": "swish", "pad_token_id": 59},
}


@pytest.fixture(params=THEIRS)
def theirs(request):
    return build(request.param, **THEIRS[request.param])


def build(kind, **fields):
    config = transformers.GPT2Config if kind.startswith("GPT2") else transformers.OpenAIGPTConfig
    return draw(getattr(transformers, kind)(config(**SHAPE | fields)))


def draw(model):
    """Draw every parameter, wide enough that each matters."""
    for parameter in model.requires_grad_(False).parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return wake(model.eval())


@torch.no_grad()
def assert_same(ours, theirs):
    """Compare each block's tokens and the logits, of texts of several lengths, padded behind."""
    mask, text = torch.arange(9) < torch.tensor([[9], [4], [1]]), torch.randint(ours.config.vocab_size - 2, (3, 9))
    text[~mask] = ours.config.pad_id or 0
    expected = theirs(text, attention_mask=mask.long(), output_hidden_states=True)
    seen = []
    hooks = [block.register_forward_hook(lambda *args: seen.append(args[-1])) for block in ours.blocks]
    features = ours.forward_features(text, mask)
    for hook in hooks:
        hook.remove()
    seen[-1] = features  # theirs ends with the last norm
    assert len(seen) == len(expected.hidden_states) - 1
    for tokens, hidden in zip(seen, expected.hidden_states[1:], strict=True):
        assert hidden.std() > 0.3
        assert_close(tokens[mask], hidden[mask])
    if "logits" in expected:
        answered = mask if expected.logits.ndim == 3 else slice(None)
        assert_close(ours(text, mask)[answered], expected.logits[answered])


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_their_folder_is_read(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(tmp_path).eval()
    assert_same(ours, theirs)
    config = theirs.config
    assert (ours.config.max_length, ours.config.head == "classification") == (16, "Sequence" in type(theirs).__name__)
    assert (ours.config.bos_id, ours.config.eos_id) == (config.bos_token_id, config.eos_token_id)
    assert ours.config.pad_id == (config.eos_token_id if config.pad_token_id is None else config.pad_token_id)
    assert (ours.config.dropout, ours.config.blocks[0].dropout) == (config.embd_pdrop, config.resid_pdrop)
    assert ours.labels == (list("abcde") if ours.config.head == "classification" else None)


@pytest.mark.parametrize("head", ["language", "classification"])
@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_what_is_trained_here_is_read_there(name, head, tmp_path):
    fields = {"head": head, "num_classes": 3 if head == "classification" else 2, "pad_id": 7, "bos_id": 5, "eos_id": 6}
    ours = draw(create_model(name, vocab_size=40, embed_dim=96, depth=2, **fields))
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path, "transformers")
    kind = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    theirs, report = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same(ours, theirs.eval())
    loaded = load_model(tmp_path).eval()
    assert loaded.config == ours.config
    assert_same(loaded, theirs)
    text = torch.arange(7)[None]
    body = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert_close(body(text).last_hidden_state, ours.forward_features(text))


def test_they_get_their_own_back(theirs):
    theirs.config.architectures = [type(theirs).__name__]
    config = gpt_layout.config_from(theirs.config.to_dict())
    state = gpt_layout.state_to(gpt_layout.state_from(theirs.state_dict(), config), config)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    bare.pop(gpt_layout.COPY, None)
    assert {name.removeprefix("transformer.") for name in state} == bare.keys()
    assert all(torch.equal(tensor, bare[name.removeprefix("transformer.")]) for name, tensor in state.items())
    written = gpt_layout.config_to(config)
    again = type(theirs.config)(**written)
    for field in written.keys() - {"architectures", "pad_token_id", "n_inner", "label2id"}:
        assert getattr(again, field) in (getattr(theirs.config, field), "silu"), field


def test_a_published_file_is_read(tmp_path):
    """Its names have no prefix, its causal masks are among the tensors, and its config leaves out what is usual."""
    theirs = build("GPT2LMHeadModel")
    state = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    for i in range(3):
        state[f"h.{i}.attn.bias"] = torch.ones(16, 16).tril()[None, None]
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **SHAPE}))
    ours = load_model(tmp_path).eval()
    assert_same(ours, theirs)
    assert (ours.config.pad_id, ours.config.eos_id) == (None, None)  # 50256 is none of 61 tokens
    classifier = load_model(tmp_path, head="classification", num_classes=4)
    assert torch.equal(classifier.norm.weight, ours.norm.weight)
    state.pop("h.1.attn.c_proj.weight")
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(GlocalError, match=r"- blocks\.1\.mixer\.attention\.proj\.weight"):
        load_model(tmp_path)


@torch.no_grad()
def test_their_greedy_search_takes_the_steps_that_ours_does(tmp_path):
    theirs = build("GPT2LMHeadModel", **SPECIAL)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    mask = torch.arange(6) >= torch.tensor([[0], [4], [5]])
    prompts = torch.randint(50, (3, 6)).masked_fill(~mask, 59)
    expected = theirs.generate(
        prompts, attention_mask=mask.long(), do_sample=False, max_new_tokens=8, eos_token_id=None
    )
    state = ours.start(prompts, mask, beams=1, max_new_tokens=8)
    for given, chosen in zip(expected.T[5:-1], expected.T[6:], strict=True):
        assert torch.equal(ours.step(given, state).argmax(-1), chosen)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "True; ours have scale_attn_by_inverse_layer_idx False"),
        ({"scale_attn_weights": False, "add_cross_attention": True}, "scale_attn_weights False, add_cross_attention"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ({"architectures": ["GPT2DoubleHeadsModel"]}, "'GPT2DoubleHeadsModel'; ours are GPT2LMHeadModel, GPT2For"),
        ({"activation_function": "mish"}, "activation_function 'mish'; ours are gelu_new"),
        ({"model_type": "openai-gpt", "afn": "gelu_new"}, "afn 'gelu_new'; ours are gelu, relu"),
    ],
)
def test_what_ours_cannot_be_is_refused(fields, message, tmp_path):
    build("GPT2LMHeadModel", **SPECIAL).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **SHAPE, **fields}))
    with pytest.raises(GlocalError, match=message) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_what_theirs_cannot_be_is_refused():
    gpt1, gpt2 = NAMED_CONFIGS["gpt"][1], NAMED_CONFIGS["gpt2"][1]
    unlike = replace(gpt2, blocks=(replace(gpt2.blocks[0], mlp_ratio=2.0), *gpt2.blocks[1:]))
    for ours, message in (
        (override(gpt2, {"qkv_bias": False}), "GPT has no qkv_bias False"),
        (NAMED_CONFIGS["gpt2-half"][1], "GPT has no local_heads 6"),
        (NAMED_CONFIGS["gpt2-windows"][1], "GPT has no local_heads 12"),
        (override(gpt1, {"activation": "gelu"}), "GPT-1 has no activation 'gelu'"),
        (override(gpt1, {"mlp_ratio": 2.0}), "no mlp_ratio but 4"),
        (unlike, "blocks that are all alike"),
    ):
        with pytest.raises(ValueError, match=message):
            gpt_layout.config_to({"config": asdict(ours)})
