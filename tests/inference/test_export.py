"""What the command writes for others; that they compute the same with it is tested in tests/interop."""

import json

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from glocal.cli import main
from glocal.errors import GlocalError
from glocal.inference.export import export
from glocal.models import create_model

TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2}


def test_a_classifier_of_texts_is_exported_with_its_tokenizer_and_labels(speller, tmp_path, capsys):
    model = create_model("bert-tiny", **TINY, head="classification", num_classes=3, vocab_size=speller.vocab_size)
    model.labels = ["bad", "fair", "good"]
    model.save_pretrained(tmp_path / "ours")
    speller.save(tmp_path / "ours")
    main(["export", str(tmp_path / "ours"), "--to", "transformers", "-o", str(tmp_path / "theirs")])
    assert capsys.readouterr().out == f"{tmp_path / 'theirs'}\n"
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "theirs")
    assert list(theirs.config.id2label.values()) == model.labels
    text = "any words 42"
    assert AutoTokenizer.from_pretrained(tmp_path / "theirs")(text)["input_ids"] == speller.encode([text])[0]


def test_what_others_have_not_is_one_line(tiny_vit, tmp_path):
    create_model("lstm-tiny", vocab_size=20, embed_dim=16, hidden_dim=8).save_pretrained(tmp_path / "lstm")
    with pytest.raises(GlocalError, match="holds a lstm model, and transformers has none such; export can write vit"):
        export(tmp_path / "lstm", tmp_path / "out", "transformers")
    tiny_vit.save_pretrained(tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["config"]["blocks"][0]["norm"] = "post"
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    with pytest.raises(GlocalError, match=r"cannot be written for transformers: .*norm 'post'"):
        export(tmp_path / "vit", tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()
