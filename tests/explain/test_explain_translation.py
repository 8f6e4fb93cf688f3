"""What a translation looks at: the weights that the forward pass uses, under the right words."""

import pytest
import torch

from glocal.data import Subwords, Tokenizer
from glocal.explain import attention_weights, explain_translation
from glocal.models import create_model
from glocal.tasks import Translator

SHAPE = {"embed_dim": 24, "depth": 2}
KINDS = {"transformer-tiny": SHAPE | {"num_heads": 3}, "lstm-tiny": SHAPE | {"hidden_dim": 16}}
SOURCE, TARGET = "twenty one", "hai mươi mốt"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Subwords.train([SOURCE, TARGET] * 9, "bpe", 300)


@pytest.fixture(params=KINDS)
def translator(request, tokenizer):
    model = create_model(request.param, **KINDS[request.param], vocab_size=tokenizer.vocab_size)
    return Translator(model, tokenizer, "cpu")


@torch.no_grad()
def test_weights_are_those_that_the_forward_pass_uses():
    model = create_model("transformer-tiny", **KINDS["transformer-tiny"], vocab_size=40).eval()
    block, seen = model.decoder[1], {}
    hooks = [
        part.register_forward_hook(
            lambda part, args, kwargs, output: seen.update({part: (args, output)}), with_kwargs=True
        )
        for part in (block.mixer.attention, block.cross)
    ]
    weights = attention_weights(model, torch.randint(3, 40, (2, 7)), torch.randint(3, 40, (2, 5)))
    for hook, part, kind in zip(hooks, (block.mixer.attention, block.cross), ("decoder", "cross"), strict=True):
        hook.remove()
        args, output = seen[part]
        _, _, v = part.project(args[0], args[1] if kind == "cross" else None)
        expected = part.proj((weights[kind][1] @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(expected, output, atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_look_has_its_shape_and_sums_to_one():
    source, target = torch.randint(3, 40, (2, 7)), torch.randint(3, 40, (2, 5))
    shapes = {"encoder": (2, 2, 3, 7, 7), "decoder": (2, 2, 3, 5, 5), "cross": (2, 2, 3, 5, 7)}
    for name, expected in (("transformer-tiny", shapes), ("lstm-tiny", {"cross": (1, 2, 1, 5, 7)})):
        weights = attention_weights(create_model(name, **KINDS[name], vocab_size=40).eval(), source, target)
        assert {kind: tuple(matrix.shape) for kind, matrix in weights.items()} == expected
        for looks in weights.values():
            torch.testing.assert_close(looks.sum(-1), torch.ones(looks.shape[:-1]))
        if "decoder" in weights:
            assert not weights["decoder"].triu(1).any()


def test_looking_changes_no_translation_and_leaves_no_hook(translator):
    before = translator.predict([SOURCE])[0]
    explanation = explain_translation(translator, SOURCE)
    assert explanation.translation == before.text == translator.predict([SOURCE])[0].text
    assert not any(module._forward_pre_hooks for module in translator.model.modules())


def test_words_stand_where_the_weights_are(translator):
    seen = explain_translation(translator, SOURCE, TARGET)
    assert (seen.source, seen.translation) == (SOURCE, TARGET)
    cross = seen.attention["cross"]
    assert cross.keys == ["twenty", "one", "<eos>"]
    assert cross.queries == ["hai", "mươi", "mốt", "<eos>"]
    tokenizer = translator.tokenizer
    (source,), (target,) = tokenizer.encode([SOURCE]), tokenizer.encode([TARGET])
    ids = torch.tensor([source]), torch.tensor([[tokenizer.bos_id, *target[:-1]]])
    with torch.no_grad():
        torch.testing.assert_close(cross.weights, attention_weights(translator.model, *ids)["cross"][:, 0])
    if "decoder" in seen.attention:  # what is written follows what was read
        assert seen.attention["decoder"].queries == cross.queries
        assert seen.attention["decoder"].keys == ["<bos>", *cross.queries[:-1]]
        assert seen.attention["encoder"].queries == seen.attention["encoder"].keys == cross.keys
