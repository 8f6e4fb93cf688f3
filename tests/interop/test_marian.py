"""MarianMTModel with random weights answers as our Transformer with the same, whichever side wrote them down: 1e-5."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import transformers
from conftest import wake
from huggingface_hub.utils import filter_repo_objects

from glocal.errors import GlocalError
from glocal.export.exporter import export
from glocal.interop import marian as marian_layout
from glocal.layers.block import BlockConfig
from glocal.models import NAMED_CONFIGS, Transformer, TransformerConfig, create_model, load_model
from glocal.models.config import override
from glocal.models.folders import find_folder

LAST = 52
OPUS = {  # opus-mt's, narrower
    "vocab_size": LAST + 1,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "activation_function": "swish",
    "max_position_embeddings": 64,
    "scale_embedding": True,
    "pad_token_id": LAST,
    "decoder_start_token_id": LAST,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
}
MARIAN = {
    "opus-mt": OPUS,
    "opus-mt-tc-big, as wide as it is": OPUS
    | {"d_model": 1024, "encoder_attention_heads": 16, "decoder_attention_heads": 16, "activation_function": "relu"}
    | {"encoder_layers": 1, "encoder_ffn_dim": 4096, "decoder_layers": 1, "decoder_ffn_dim": 4096, "eos_token_id": 7},
    "two sides that differ, odd numbers, tokens in other places": OPUS
    | {"d_model": 30, "encoder_attention_heads": 5, "encoder_ffn_dim": 47, "encoder_layers": 3}
    | {"decoder_attention_heads": 3, "decoder_ffn_dim": 31, "decoder_layers": 1, "activation_function": "gelu"}
    | {"pad_token_id": 3, "decoder_start_token_id": 9, "eos_token_id": 11, "vocab_size": 61},
    "one head a channel": OPUS | {"d_model": 6, "encoder_attention_heads": 6, "decoder_attention_heads": 1},
}
COPIES = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
COMPUTED = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


@pytest.fixture(params=MARIAN)
def theirs(request):
    return marian(**MARIAN[request.param])


def marian(**fields):
    """Build their model with every parameter drawn, wide enough that each matters."""
    model = transformers.MarianMTModel(transformers.MarianConfig(**fields)).eval()
    for name, parameter in [*model.named_parameters(), ("final_logits_bias", model.final_logits_bias)]:
        if parameter.ndim > 1 and "embed_positions" not in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return wake(model.requires_grad_(False))


@torch.no_grad()
def assert_same(ours, theirs):
    """Compare the logits of sentences of several lengths, with and without their padding being said."""
    vocab, pad = ours.config.vocab_size, ours.config.pad_id
    source, target = torch.randint(vocab, (3, 9)), torch.randint(vocab, (3, 7))
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    source[~mask], target[1, 3:], target[:, 0] = pad, pad, ours.config.bos_id
    for given in (mask, None):
        expected = theirs(
            input_ids=source, attention_mask=None if given is None else given.long(), decoder_input_ids=target
        ).logits
        assert expected.std() > 0.3
        torch.testing.assert_close(ours(source, target, given), expected, atol=1e-5, rtol=1e-5)


def test_their_folder_is_read(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    ours = Transformer.from_pretrained(tmp_path).eval()
    assert_same(ours, theirs)
    config = theirs.config
    assert ours.config.max_length == config.max_position_embeddings
    assert ours.config.pad_id == config.pad_token_id
    assert ours.config.bos_id == config.decoder_start_token_id
    assert ours.config.eos_id == config.eos_token_id
    assert ours.config.dropout == ours.config.decoder[0].dropout == config.dropout


def test_ours_saved_from_theirs_is_the_same(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    load_model(tmp_path).save_pretrained(tmp_path / "ours")
    assert_same(load_model(tmp_path / "ours").eval(), theirs)


@pytest.mark.parametrize("given", ["positions", "biases", "neither"])
def test_what_is_trained_here_is_read_there(given, tmp_path):
    fields = {"positions": "halves"} if given == "positions" else {"logit_bias": given == "biases"}
    ours = wake(create_model("transformer-tiny", vocab_size=40, max_length=50, depth=2, **fields)).eval()
    theirs = read_there(ours, tmp_path)
    assert_same(ours, theirs)
    assert_same(load_model(tmp_path).eval(), theirs)


def test_encoder_and_decoder_of_two_shapes_are_read_there(tmp_path):
    shape = {"embed_dim": 30, "norm": "post", "norm_eps": 1e-5, "activation": "silu"}
    encoder = BlockConfig(**shape, num_heads=5, mlp_ratio=1.5, drop_path=0.1)
    decoder = BlockConfig(**shape, num_heads=3, mlp_ratio=0.9, causal=True, cross=True)
    config = TransformerConfig(
        vocab_size=40, encoder=(encoder, encoder), decoder=(decoder,), pad_id=5, bos_id=6, eos_id=7
    )
    ours = wake(Transformer(config)).eval()
    assert_same(ours, read_there(ours, tmp_path))


def read_there(ours, folder):
    ours.save_pretrained(folder / "ours")
    export(folder / "ours", folder, "transformers")
    theirs, report = transformers.MarianMTModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return theirs.eval()


def test_they_get_their_own_back(theirs):
    config = marian_layout.config_from(theirs.config.to_dict())
    state = marian_layout.state_to(marian_layout.state_from(theirs.state_dict(), config), config)
    expected = {name: tensor for name, tensor in theirs.state_dict().items() if name not in COPIES + COMPUTED}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    again = transformers.MarianConfig(**marian_layout.config_to(config))
    assert again.activation_function in (theirs.config.activation_function, "silu")
    for field in marian_layout.DEFAULTS.keys() - {"activation_function"}:
        assert getattr(again, field) == getattr(theirs.config, field), field


@pytest.mark.parametrize("kept", [*COPIES, "model.shared.weight", "all"])
def test_a_pickle_in_half_precision_is_read_whichever_name_its_embeddings_have(kept, tmp_path):
    """As opus-mt is published; one matrix has four names, and a converter may have kept any of them."""
    theirs, state = marian(**OPUS), {}
    theirs.config.save_pretrained(tmp_path)
    for name, tensor in theirs.state_dict().items():
        if name not in COMPUTED:
            tensor.copy_(tensor.half())
        if name not in {"model.shared.weight", *COPIES} or kept in (name, "all"):
            state[name] = tensor.half()
    torch.save(state, tmp_path / "pytorch_model.bin")
    ours = load_model(tmp_path).eval()
    assert ours.embedding.weight.dtype == torch.float32
    assert_same(ours, theirs)


def test_headless_tensors_are_read_and_what_is_missing_is_named(tmp_path):
    theirs = marian(**OPUS)
    theirs.model.save_pretrained(tmp_path)
    theirs.final_logits_bias.zero_()
    assert_same(Transformer.from_pretrained(tmp_path).eval(), theirs)
    state = theirs.state_dict()
    del state["model.decoder.layers.1.encoder_attn.k_proj.bias"], state["model.encoder.layers.0.fc2.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(GlocalError, match=r"cross\.kv\.bias.*- encoder\.0\.mlp\.fc2\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_embedding": False}, "scale_embedding False; ours have scale_embedding True"),
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings False"),
        ({"tie_word_embeddings": False, "scale_embedding": False}, "False, tie_word_embeddings False; ours have"),
        ({"normalize_before": True}, "normalize_before True"),
        ({"static_position_embeddings": False}, "static_position_embeddings False"),
        ({"activation_function": "gelu_new"}, "activation_function 'gelu_new'; ours are relu, gelu, silu, swish"),
        ({"eos_token_id": [0, 1]}, "eos_token_id"),
        ({"d_model": 27, "encoder_attention_heads": 3, "decoder_attention_heads": 3}, "odd width 27"),
    ],
)
def test_what_ours_cannot_be_is_refused(fields, message, tmp_path):
    marian(**OPUS).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian", **OPUS, **fields}))
    with pytest.raises(GlocalError, match=message) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "pre"}, "Marian's encoder has no norm 'pre'"),
        ({"norm_eps": 1e-6, "qkv_bias": False}, "no norm_eps 1e-06, qkv_bias False"),
        ({"qkv_ratio": 0.5}, "no qkv_ratio 0.5"),
        ({"encoder": "local"}, "Marian's encoder has no local_heads 2"),
        ({"encoder": "causal"}, "Marian's encoder has no causal True"),
        ({"encoder": "gelu"}, "Marian's decoder has no activation 'relu'"),
        ({"encoder": "unlike"}, "Marian's encoder has blocks that are all alike"),
    ],
)
def test_what_theirs_cannot_be_is_refused(fields, message):
    plain = BlockConfig(embed_dim=128, num_heads=4, mlp_ratio=2.0, norm="post", norm_eps=1e-5, activation="relu")
    encoders = {
        "local": (replace(plain, local_heads=2),),
        "causal": (replace(plain, causal=True),),
        "gelu": (replace(plain, activation="gelu"),),
        "unlike": (plain, replace(plain, mlp_ratio=1.0)),
    }
    config = NAMED_CONFIGS["transformer-tiny"][1]
    config = replace(config, encoder=encoders[fields["encoder"]]) if "encoder" in fields else override(config, fields)
    with pytest.raises(ValueError, match=message):
        marian_layout.config_to({"config": asdict(config)})


@torch.no_grad()
def test_their_greedy_search_takes_the_steps_that_ours_does(tmp_path):
    theirs = marian(**OPUS)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    source, mask = torch.randint(LAST, (3, 6)), torch.arange(6) < torch.tensor([[6], [3], [5]])
    expected = theirs.generate(source, attention_mask=mask.long(), num_beams=1, max_length=12)
    state = ours.start(source, mask, beams=1, max_new_tokens=12)
    for given, chosen in expected.T[:-2].unfold(0, 2, 1).transpose(1, 2):  # the last of all is forced to be the end
        going = chosen != LAST
        assert torch.equal(ours.step(given, state).argmax(-1)[going], chosen[going])


@pytest.mark.parametrize("has_safetensors", [True, False])
def test_the_hub_is_asked_for_the_tokenizer_and_for_a_pickle_where_nothing_else_is(
    has_safetensors, tmp_path, monkeypatch
):
    hub = ["README.md", "config.json", "pytorch_model.bin", "source.spm", "target.spm", "tf_model.h5", "vocab.json"]
    hub += ["model.safetensors"] if has_safetensors else ["rust_model.ot"]

    def download(name, allow_patterns):
        assert name == "Helsinki-NLP/opus-mt-en-vi"
        for file in filter_repo_objects(hub, allow_patterns=allow_patterns):
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr("glocal.models.folders.snapshot_download", download)
    assert find_folder("Helsinki-NLP/opus-mt-en-vi") == tmp_path
    weights = "model.safetensors" if has_safetensors else "pytorch_model.bin"
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "source.spm",
        "target.spm",
        "vocab.json",
        weights,
    }
