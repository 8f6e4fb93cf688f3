"""Classifiers of transformers whose outputs are a number, or any number of classes: read, written, and the same."""

import json
import re

import pytest
import torch
import transformers
from conftest import wake

from glocal.errors import GlocalError
from glocal.export.exporter import export
from glocal.models import load_model
from glocal.tasks import load

BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 16}  # fmt: skip
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16,
       "patch_size": 8}  # fmt: skip
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "pad_token_id": 3}
KINDS = {
    "BertForSequenceClassification": BERT,
    "GPT2ForSequenceClassification": GPT2,
    "ViTForImageClassification": VIT,
    "DeiTForImageClassification": VIT,
    "DeiTForImageClassificationWithTeacher": VIT,
}
ONE, SEVERAL = {"num_labels": 1}, {"id2label": {0: "cat", 1: "dog", 2: "elk"}}
OUTPUTS = [
    (ONE, "regression", None),
    (ONE | {"problem_type": "regression"}, "regression", None),
    (SEVERAL | {"problem_type": "multi_label_classification"}, "multi_label_classification", ["cat", "dog", "elk"]),
    ({"id2label": {0: "cat"}, "problem_type": "multi_label_classification"}, "multi_label_classification", ["cat"]),
    (SEVERAL | {"problem_type": "single_label_classification"}, None, ["cat", "dog", "elk"]),
]


def build(kind, fields):
    config = getattr(transformers, kind.partition("For")[0] + "Config")(**KINDS[kind], **fields)
    return wake(getattr(transformers, kind)(config)).eval()


def inputs(kind):
    if KINDS[kind] is VIT:
        return {"pixel_values": torch.randn(3, 3, 16, 16)}
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    return {"input_ids": torch.randint(4, 40, (3, 9)).where(mask, 3), "attention_mask": mask}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fields", "problem_type", "labels"), OUTPUTS)
@torch.no_grad()
def test_they_are_read_written_and_the_same(kind, fields, problem_type, labels, tmp_path):
    theirs, batch = build(kind, fields), inputs(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs").eval()
    assert (ours.problem_type, ours.labels, ours.config.num_classes) == (problem_type, labels, len(labels or "1"))
    expected = theirs(**batch).logits
    torch.testing.assert_close(ours(**batch), expected, atol=1e-5, rtol=1e-5)
    export(tmp_path / "theirs", tmp_path / "back", "transformers")
    back = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    assert back.problem_type == problem_type
    assert back.num_labels == len(labels or "1")
    assert labels is None or [*back.id2label.values()] == labels
    again = getattr(transformers, back.architectures[0]).from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(again(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["problem_type"] == problem_type
    assert load_model(tmp_path / "ours").problem_type == problem_type


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
@torch.no_grad()
def test_a_text_gets_transformers_own_numbers(problem_type, speller, tmp_path):
    fields = ONE if problem_type == "regression" else SEVERAL
    config = transformers.BertConfig(**BERT | {"vocab_size": speller.vocab_size}, **fields, problem_type=problem_type)
    theirs = wake(transformers.BertForSequenceClassification(config)).eval()
    theirs.save_pretrained(tmp_path)
    speller.save(tmp_path)
    given = transformers.AutoTokenizer.from_pretrained(tmp_path)("a b c", return_tensors="pt")
    logits = theirs(**given).logits[0]
    predictor = load(tmp_path, "cpu")
    if problem_type == "regression":
        assert predictor.predict(["a b c"]) == pytest.approx(logits.tolist(), abs=1e-5)
        return
    (found,) = predictor.predict(["a b c"], top=3)
    expected = zip(["cat", "dog", "elk"], logits.sigmoid().tolist(), strict=True)
    assert dict(found) == pytest.approx(dict(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "problem_type"),
    [(ONE, "single_label_classification"), (SEVERAL, "regression"), (SEVERAL, "ranking"), (SEVERAL, [])],
)
@pytest.mark.parametrize("kind", [*KINDS][:3])
def test_other_outputs_are_refused_in_one_line(kind, fields, problem_type, tmp_path):
    build(kind, fields).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"problem_type": problem_type}))
    message = f"with problem_type {problem_type!r}; expected one of two labels or more"
    with pytest.raises(GlocalError, match=re.escape(message)) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"problem_type": "ranking"},
            "problem_type 'ranking'; expected multi_label_classification, regression or",
        ),
        ({"problem_type": []}, "has problem_type"),
        ({"problem_type": "regression", "labels": None}, "has problem_type regression for 5 outputs"),
    ],
)
def test_a_wrong_config_is_one_line(changes, message, tiny_vit, tmp_path):
    tiny_vit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(GlocalError, match=message) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)
