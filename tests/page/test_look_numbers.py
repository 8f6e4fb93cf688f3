"""What the page is given is what the model computes: packed, complete, and small."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from conftest import TINY, wake
from models_of_pages import GIVEN, SHAPE, build
from PIL import Image

from glocal.cli import main
from glocal.errors import GlocalError
from glocal.explain import head_patterns, rollout
from glocal.generation import DecodingConfig
from glocal.models import create_model
from glocal.page import STATIC, numbers, write_page
from glocal.page.arrays import pack_numbers, pack_weights, unpack
from glocal.page.layers import MAX_BYTES, fitting_layers
from glocal.page.look import PARTS, Wanted, look
from glocal.tasks import ImageClassifier, MultiLabelTextClassifier, TextRegressor, explain

LARGEST = 3_000_000


@pytest.fixture(scope="module", params=GIVEN)
def name(request):
    return request.param


def payload(name):
    given = GIVEN[name]
    if isinstance(given, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(given).save(file, "png")
        return {"image": base64.b64encode(file.getvalue()).decode()}
    return {"question": given[0], "context": given[1]} if isinstance(given, tuple) else {"text": given}


def test_packed_rows_sum_to_one_and_are_close():
    weights = torch.rand(2, 3, 40).softmax(dim=-1)
    found = unpack(pack_weights(weights))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(found, weights, atol=weights.max().item() / 255)
    vectors = torch.randn(3, 5)
    np.testing.assert_allclose(unpack(pack_numbers(vectors)), vectors, atol=vectors.abs().max().item() / 65000)
    assert not unpack(pack_numbers(torch.zeros(2, 2))).any()


def test_weights_are_those_of_explain(name):
    seen = explain(build(name), GIVEN[name])
    path = {}
    if name in ("translate", "recur"):  # explain encodes the translation anew, which may give other tokens
        path = {"path": build(name).tokenizer.encode([seen.translation], target=True)[0], "parts": ["attention"]}
    found = numbers(build(name), payload(name) | path)["attention"]
    if name in ("vit", "glit"):
        weights = {"blocks": unpack(found["blocks"]["weights"])}
        maps = weights["blocks"][:, :, 0, 1:].reshape(seen.heads.shape)
        np.testing.assert_allclose(maps, seen.heads, atol=weights["blocks"].max() / 200)
        np.testing.assert_allclose(unpack(found["blocks"]["rollout"])[0, 1:], seen.rollout.flatten(), atol=0.01)
        assert found["blocks"]["local_heads"] == seen.local_heads
    elif name in ("translate", "recur"):
        assert set(found) == set(seen.attention)
        for kind, each in seen.attention.items():
            assert (found[kind]["queries"], found[kind]["keys"]) == (each.queries, each.keys)
            np.testing.assert_allclose(unpack(found[kind]["weights"]), each.weights, atol=1 / 200)
    else:
        tokens = len(seen.queries)  # of what was written, explain saw the prompt alone
        assert found["blocks"]["queries"][:tokens] == seen.queries
        weights = unpack(found["blocks"]["weights"])[:, :, :tokens, :tokens]
        np.testing.assert_allclose(weights, seen.weights, atol=1 / 200)


def test_the_weights_follow_from_queries_and_keys(name):
    found = numbers(build(name), payload(name))
    for kind, layers in found["vectors"].items():
        attention = found["attention"][kind]
        weights = unpack(attention["weights"])
        for vectors in layers:
            q, k, v = (unpack(vectors[part]) for part in ("queries", "keys", "values"))
            scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
            if attention["causal"]:
                scores += np.triu(np.full(scores.shape, -np.inf), 1)
            computed = torch.tensor(scores).softmax(dim=-1).numpy()
            place = attention["layers"].index(vectors["layer"])
            np.testing.assert_allclose(computed, weights[place, : len(q)], atol=0.01)
            assert v.shape[:2] == k.shape[:2]


@pytest.mark.parametrize("name", ["vit", "glit", "classify"])
def test_classes_are_those_of_predict(name):
    (expected,) = build(name).predict([GIVEN[name]])
    found = numbers(build(name), payload(name))["result"]["labels"]
    assert [(each["label"], each["probability"]) for each in found][:5] == [
        (label, pytest.approx(probability, abs=1e-6)) for label, probability in expected
    ]


@pytest.mark.parametrize("kind", [TextRegressor, MultiLabelTextClassifier])
def test_numbers_and_independent_classes_are_those_of_predict(kind):
    words = build("classify").tokenizer
    classes = 1 if kind is TextRegressor else 3
    shape = {**SHAPE, "head": "classification", "num_classes": classes, "vocab_size": words.vocab_size}
    model = wake(create_model("bert-tiny", **shape))
    model.problem_type = "regression" if kind is TextRegressor else "multi_label_classification"
    predictor = kind(model, words, "cpu")
    found = numbers(predictor, {"text": "the cat", "pair": "it sat"})
    assert found["task"] == ("text-regression" if classes == 1 else "multi-label-text-classification")
    assert "[SEP]" in found["attention"]["blocks"]["keys"][1:-1]
    if kind is TextRegressor:
        assert found["result"] == {"score": pytest.approx(predictor.predict([("the cat", "it sat")])[0])}
    else:
        assert len(found["result"]["labels"]) == 3
        assert not found["result"]["exclusive"]


def test_patterns_are_those_of_explain():
    found = numbers(build("classify"), payload("classify"))["attention"]["blocks"]["patterns"]
    for pattern, shares in head_patterns(build("classify"), [GIVEN["classify"]]).shares.items():
        np.testing.assert_allclose(found[pattern], shares, atol=1e-4)


def test_entities_stand_where_their_words_do():
    (expected,) = build("tag").predict([GIVEN["tag"]])
    found = numbers(build("tag"), payload("tag"))["result"]["entities"]
    assert expected
    assert len(found) == len(expected)
    for entity, each in zip(expected, found, strict=True):
        assert GIVEN["tag"][each["start"] : each["end"]].replace(".", " .") == entity.text.replace(" .", " .")


def test_masked_words_are_those_of_predict():
    found = look(build("mask"), GIVEN["mask"], Wanted(parts=PARTS))["masks"]
    tokens = numbers(build("mask"), payload("mask"))["attention"]["blocks"]["keys"]
    assert set(found) == {str(i) for i in range(1, len(tokens) - 1)}
    ((words,),) = build("mask").predict(["the [MASK] sat on the mat"])
    place = str(tokens.index("cat"))
    assert [each["label"] for each in found[place]] == [word for word, _ in words]
    assert numbers(build("mask"), payload("mask") | {"parts": ["masks"], "token": 2})["masks"] == {"2": found["2"]}


def test_the_tree_holds_what_greedy_search_writes():
    result = look(build("write"), GIVEN["write"], Wanted())["result"]
    ids = [result["tree"][node]["id"] for node in result["written"]]
    (expected,) = build("write").predict([GIVEN["write"]], DecodingConfig(extra_length=len(ids)))
    (whole,) = build("write").tokenizer.decode([build("write").tokenizer.encodings([GIVEN["write"]])[0].ids + ids])
    assert whole == GIVEN["write"] + expected.text
    parents = [node["parent"] for node in result["tree"]]
    assert all(parent < number for number, parent in enumerate(parents))
    siblings = [node["probability"] for node in result["tree"] if node["parent"] == 0]
    assert siblings == sorted(siblings, reverse=True)
    assert sum(siblings) <= 1


def test_a_path_goes_on_from_its_last_token():
    first = numbers(build("write"), payload("write"))["result"]
    path = [first["tree"][node]["id"] for node in first["written"][:3]]
    more = numbers(build("write"), payload("write") | {"path": path, "parts": ["result"]})["result"]
    again = [first["tree"][node]["id"] for node in first["written"][3:8]]
    assert [more["tree"][node]["id"] for node in more["written"][:5]] == again


@pytest.mark.parametrize("name", ["translate", "recur"])
def test_the_beams_are_those_of_beam_search(name):
    result = numbers(build(name), payload(name))["result"]
    (expected,) = build(name).predict([GIVEN[name]], DecodingConfig(beams=4, nbest=4))
    assert [each["text"] for each in result["hypotheses"]] == [text for text, _ in expected.nbest]
    assert [each["score"] for each in result["hypotheses"]] == pytest.approx([score for _, score in expected.nbest])
    best, log_p = result["hypotheses"][0]["node"], 0.0
    length = 0
    while best > 0:
        log_p += np.log(max(result["tree"][best]["probability"], 1e-9))
        best, length = result["tree"][best]["parent"], length + 1
    assert log_p / ((5 + length) / 6) ** 0.6 == pytest.approx(expected.score, abs=0.05)


def test_one_layer_can_be_asked_for():
    found = numbers(build("classify"), payload("classify") | {"parts": ["attention", "vectors"], "layer": 0})
    assert set(found) == {"task", "model", "input", "attention", "vectors"}
    assert found["attention"]["blocks"]["layers"] == [0]
    assert [each["layer"] for each in found["vectors"]["blocks"]] == [0]


def test_one_kind_can_be_asked_for():
    wanted = {"parts": ["attention", "vectors"], "kind": "encoder", "layer": 1}
    found = numbers(build("translate"), payload("translate") | wanted)
    assert set(found["attention"]) == set(found["vectors"]) == {"encoder"}


@pytest.mark.parametrize(
    ("name", "wrong", "problem"),
    [
        ("classify", {"text": 3}, "3 was given; expected a text"),
        ("classify", {"parts": ["all"]}, "parts"),
        ("classify", {"layer": 2}, "layer 2; this model has layers 0 to 1"),
        ("classify", {"layer": -1}, "layer -1; expected a whole number"),
        ("classify", {"text": "cat " * 99}, "more than the 32 tokens"),
        ("classify", {"kind": "cross"}, "this model has blocks"),
        ("write", {"path": [99999]}, "ids of tokens"),
        ("mask", {"parts": ["masks"], "token": 50}, "token 50 of a text of 8"),
        ("answer", {"context": None}, "was given; expected"),
        ("vit", {"image": "/etc/passwd"}, "expected the bytes of an image file"),
        ("vit", {"image": "bm8gaW1hZ2U="}, "cannot be read as an image"),
        ("vit", {"image": "data:image/png;base64,§"}, "expected the bytes of an image file"),
        ("vit", {"path": [1]}, "ids of tokens"),
        ("vit", {}, "image"),
    ],
)
def test_what_does_not_fit_is_one_line(name, wrong, problem):
    given = (payload(name) | wrong) if wrong else {}
    with pytest.raises(GlocalError, match=problem) as caught:
        numbers(build(name), given)
    assert "\n" not in str(caught.value)


def test_the_file_is_small_and_names_no_address(name, tmp_path):
    page = write_page(build(name), GIVEN[name], tmp_path / "look.html").read_text("utf-8")
    assert len(page) < LARGEST
    inside = re.sub(r'"data:[^"]*"', '""', page)
    assert not re.search(r"https?://", inside)
    modules = re.findall(r'"glocal/\w+": "data:text/javascript;base64,([^"]+)"', page)
    sources = [base64.b64decode(module).decode() for module in modules]
    assert len(sources) > 15
    assert not any(re.search(r"https?://", source) for source in sources)
    assert '<link rel="stylesheet"' not in page
    found = json.loads(re.search(r'id="numbers">(.*?)</script>', page, re.DOTALL)[1])
    assert found["attention"]


@pytest.mark.slow
def test_a_large_model_leaves_layers_out(tmp_path):
    model = create_model("vit-base", num_classes=3).eval()
    path = write_page(ImageClassifier(model, "cpu"), np.full((50, 50, 3), 200, np.uint8), tmp_path / "look.html")
    assert path.stat().st_size < LARGEST
    found = json.loads(re.search(r'id="numbers">(.*?)</script>', path.read_text(), re.DOTALL)[1])
    attention = found["attention"]["blocks"]
    assert attention["layers"][-1] == 11
    assert len(attention["layers"]) == MAX_BYTES // (12 * 197 * 197)


def test_layers_are_spread_over_the_depth():
    assert fitting_layers(12, 10, 1000) == [*range(12)]
    assert fitting_layers(12, 10, 45) == [0, 4, 7, 11]
    assert fitting_layers(12, 10, 5) == [11]


def test_the_command_writes_a_page(tmp_path, capsys):
    torch.manual_seed(0)
    create_model("vit-tiny", **TINY).save_pretrained(tmp_path / "model")
    Image.fromarray(GIVEN["vit"]).save(tmp_path / "photo.png")
    command = ["explain", str(tmp_path / "model"), str(tmp_path / "photo.png"), "-o", str(tmp_path / "look.html")]
    main(command)
    assert capsys.readouterr().out.strip() == str(tmp_path / "look.html")
    assert '"task":"image-classification"' in (tmp_path / "look.html").read_text()
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--layer", "1"])
    assert "--layer chooses what a figure shows" in capsys.readouterr().err


def test_rollout_rows_sum_to_one():
    found = unpack(numbers(build("vit"), payload("vit"))["attention"]["blocks"]["rollout"])
    np.testing.assert_allclose(found.sum(-1), 1)
    weights = unpack(numbers(build("vit"), payload("vit"))["attention"]["blocks"]["weights"])
    np.testing.assert_allclose(found, rollout(torch.tensor(weights)[:, None])[0], atol=0.01)


def test_both_languages_say_everything():
    entry = re.compile(r'(?:^ +|, )"?([a-z][\w\[\]-]*|token-\[\w+\])"?: "', re.MULTILINE)
    english, vietnamese = (
        set(entry.findall(STATIC.joinpath(name).read_text())) for name in ("strings.js", "vietnamese.js")
    )
    names = {"family-vit", "family-glit", "family-bert", "family-gpt", "family-transformer"}
    assert english - vietnamese == names
    assert vietnamese <= english
    assert len(english) > 100
