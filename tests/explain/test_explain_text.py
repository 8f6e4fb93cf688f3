"""What tokens of a text look at: the weights of the forward pass, under the right tokens; what heads do over texts."""

import pytest
import torch

from glocal.cli import main
from glocal.data import TokenizerConfig, learn_tokenizer
from glocal.errors import GlocalError
from glocal.explain import attention_weights, explain_text, head_patterns, strongest
from glocal.explain.texts import pattern_shares
from glocal.models import create_model
from glocal.tasks import FillMask, TextClassifier, TextGenerator

TEXTS = ["the cat sat on the mat", "where did the dog sit", "it sat on the cat"] * 9
SHAPE = {"embed_dim": 24, "num_heads": 3, "depth": 2, "max_length": 16}


def predictor(kind, name, tokenizer, **fields):
    tokens = learn_tokenizer(TEXTS, TokenizerConfig(kind=tokenizer, vocab_size=300))
    special = dict.fromkeys(("pad_id", "bos_id", "eos_id"), tokens.eos_id) if name == "gpt-tiny" else {}
    return kind(create_model(name, **SHAPE, **special, vocab_size=tokens.vocab_size, **fields), tokens, "cpu")


@pytest.fixture(scope="module")
def bert():
    return predictor(TextClassifier, "bert-tiny", "wordpiece", head="classification")


@pytest.fixture(scope="module")
def gpt():
    return predictor(TextGenerator, "gpt-tiny", "byte-bpe")


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_weights_are_those_that_the_forward_pass_uses(name, request):
    model, seen = request.getfixturevalue(name).model, {}
    attention = model.blocks[1].mixer.attention
    hook = attention.register_forward_hook(lambda part, args, output: seen.update(x=args[0], output=output))
    weights = attention_weights(model, torch.randint(3, 40, (2, 7)))["blocks"]
    hook.remove()
    _, _, v = attention.project(seen["x"], None)
    expected = attention.proj((weights[1] @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(expected, seen["output"], atol=1e-5, rtol=0)


def test_a_pair_stands_with_its_special_tokens_and_its_segments(bert):
    seen = explain_text(bert, ("the cat", "it sat"))
    assert seen.queries == seen.keys == ["[CLS]", "the", "cat", "[SEP]", "it", "sat", "[SEP]"]
    assert seen.weights.shape == (2, 3, 7, 7)
    torch.testing.assert_close(seen.weights.sum(-1), torch.ones(2, 3, 7))
    ids = torch.tensor([bert.tokenizer.encodings(["the cat"], ["it sat"])[0].ids])
    with torch.no_grad():
        first, second = (
            attention_weights(bert.model, ids, None, torch.tensor([types]))["blocks"][:, 0]
            for types in ([0, 0, 0, 0, 1, 1, 1], [0] * 7)
        )
    torch.testing.assert_close(seen.weights, first)
    assert not torch.allclose(seen.weights, second)


def test_a_causal_model_looks_back_alone(gpt):
    seen = explain_text(gpt, "the cat\nsat")
    assert seen.queries[:3] == ["the", "cat", "⏎"]
    assert not seen.weights.triu(1).any()
    torch.testing.assert_close(seen.weights.sum(-1), torch.ones(seen.weights.shape[:-1]))


@pytest.mark.parametrize("local", ["conv1d", "window"])
@pytest.mark.parametrize(
    ("kind", "name", "tokenizer"), [(TextClassifier, "bert-tiny", "wordpiece"), (TextGenerator, "gpt-tiny", "byte-bpe")]
)
def test_local_heads_are_shown_behind_global_ones(kind, name, tokenizer, local):
    fields = {"local_heads": 2, "local": local, "local_norm": "layer", "kernel_size": 3}
    fields |= {"head": "classification"} if kind is TextClassifier else {}
    model = predictor(kind, name, tokenizer, **fields)
    weights = explain_text(model, "the cat sat on the mat").weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    first, last = (-2, 0) if name == "gpt-tiny" else (-1, 1)
    distance = torch.arange(weights.shape[2]) - torch.arange(weights.shape[2])[:, None]
    near = (distance >= first) & (distance <= last)
    assert not weights[:, 1:, ~near].any()
    assert (weights[:, 0, ~near] > 0).any()
    assert head_patterns(model, TEXTS).shares["previous"].shape == (2, 3)


def test_a_masked_word_is_one_token():
    fill = predictor(FillMask, "bert-tiny", "wordpiece")
    assert explain_text(fill, "the [MASK] sat").keys == ["[CLS]", "the", "[MASK]", "sat", "[SEP]"]


def test_a_text_that_does_not_fit_is_refused(bert, gpt):
    with pytest.raises(GlocalError, match="more than the 16 tokens"):
        explain_text(bert, "cat " * 20)
    with pytest.raises(GlocalError, match="no token"):
        explain_text(gpt, "")


def test_pattern_shares_by_hand():
    weights = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])[None, None]
    looks = pattern_shares(weights, torch.tensor([False, True, True]), causal=False)
    expected = {
        "previous": [0.1, 0.25],
        "next": [0.2, 0.3],
        "same": [0.5, 0.6, 0.5],
        "first": [0.5, 0.1, 0.25],
        "separator": [0.5, 0.9, 0.75],
    }
    for name, values in expected.items():
        torch.testing.assert_close(looks[name][0, 0], torch.tensor(values))
    assert looks["entropy"][0, 0, 2].item() == pytest.approx(1.5 * torch.tensor(2.0).log().item())


def test_what_stands_alone_is_not_asked_of_a_causal_model():
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.6, 0.0], [0.1, 0.2, 0.7]])[None, None]
    looks = pattern_shares(weights, torch.zeros(3, dtype=torch.bool), causal=True)
    assert {name: [round(value, 4) for value in values[0, 0].tolist()] for name, values in looks.items()} == {
        "previous": [0.4, 0.2],
        "same": [0.6, 0.7],
        "first": [0.4, 0.1],
        "entropy": [0.673, 0.8018],
    }


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_patterns_are_means_over_the_tokens_of_all_texts(name, request):
    reader = request.getfixturevalue(name)
    texts = ["the cat sat on the mat", "it sat"]
    patterns = head_patterns(reader, texts)
    seen = [explain_text(reader, text).weights for text in texts]
    previous = torch.cat([weights.diagonal(-1, 2, 3) for weights in seen], dim=-1)
    torch.testing.assert_close(patterns.shares["previous"], previous.mean(-1))
    assert patterns.entropy.shape == (2, 3)
    assert set(patterns.shares) == {"previous", "same", "first"} | ({"next", "separator"} if name == "bert" else set())


def test_long_texts_are_cut_aloud_and_empty_ones_refused(bert, gpt):
    with pytest.warns(UserWarning, match="1 of 2 texts were cut to 16 tokens"):
        head_patterns(bert, ["cat " * 20, "cat"])
    for texts in ([], ["t"]):
        with pytest.raises(GlocalError, match="in none a token that follows another"):
            head_patterns(gpt, texts)


def test_the_strongest_heads_come_first():
    assert strongest(torch.tensor([[0.1, 0.9], [0.5, 0.2]]), 2) == [(0, 1, pytest.approx(0.9)), (1, 0, 0.5)]


@pytest.fixture(scope="module")
def folder(bert, tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    bert.model.save_pretrained(path)
    bert.tokenizer.save(path)
    return str(path)


@pytest.mark.parametrize("options", [[], ["--heads", "--layer", "0"], ["--head", "2"]])
def test_the_command_draws_tokens_on_the_axes(folder, options, tmp_path):
    main(["explain", folder, "the cat\tit sat", "-o", str(tmp_path / "look.png"), *options])
    assert (tmp_path / "look.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_names_the_heads_that_do_most(folder, bert, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("the cat sat\n\nit sat on the mat\n")
    main(["explain", folder, str(tmp_path / "texts.txt"), "--patterns", "-o", str(tmp_path / "heads.png")])
    header, first = capsys.readouterr().out.splitlines()[1:3]
    assert header.split() == ["previous", "next", "same", "first", "separator", "entropy"]
    ((layer, head, share),) = strongest(head_patterns(bert, ["the cat sat", "it sat on the mat"]).shares["previous"], 1)
    assert first.split()[:2] == [f"{layer}.{head}", f"{share:.0%}"]
    assert (tmp_path / "heads.png").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--attention", "cross"], "--attention does not apply to"),
        (["--patterns", "--layer", "1"], "--layer 1 one; leave"),
        (["--layer", "2"], "--layer 2; this model has layers 0 to 1"),
    ],
)
def test_the_command_refuses_what_a_text_has_not(folder, options, problem, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["explain", folder, "the cat", "-o", str(tmp_path / "x.png"), *options])
    assert problem in capsys.readouterr().err
