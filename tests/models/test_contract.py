"""What every model owes, whichever family it is of; each is built in its own shape, shrunk."""

import pytest
import torch
from conftest import TINY, wake
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from glocal.models import create_model, list_models, load_model


def without(fields, *names):
    """The fields but for these."""
    return {name: value for name, value in fields.items() if name not in names}


SENTENCES = {"vocab_size": 5, "depth": 2, "embed_dim": 24}
SHRUNK = dict.fromkeys(list_models(), TINY) | {
    # The CNN of a hybrid halves the image five times; its blocks see one cell a patch.
    name: TINY | {"image_size": 64, "patch_size": 1}
    for name in list_models("vit-base-r*")
}
SHRUNK |= {
    # Its blocks differ, and stay as many as they are.
    "glit-tiny": without(TINY, "depth") | {"kernel_size": 3},
    **dict.fromkeys(list_models("transformer-*"), SENTENCES | {"num_heads": 3}),
    **dict.fromkeys(list_models("lstm-*"), SENTENCES | {"hidden_dim": 12}),
    **dict.fromkeys(list_models("bert-*"), SENTENCES | {"num_heads": 3, "head": "classification", "num_classes": 5}),
    **dict.fromkeys(list_models("gpt*"), SENTENCES | {"num_heads": 3, "pad_id": 0, "bos_id": 0, "eos_id": 0}),
}
SHRUNK |= {
    # Half of their heads are local; or their blocks differ, and stay as many as they are.
    **{name: without(SHRUNK[name], "num_heads") for name in list_models("*-half")},
    **{name: without(SHRUNK[name], "num_heads", "depth") | {"kernel_size": 3} for name in list_models("*-windows")},
    "timm:resnet18": {"image_size": 32, "num_classes": 5},
    "timm:convnext_atto": {"image_size": 64, "num_classes": 5},
    "timm:swin_tiny_patch4_window7_224": {
        "image_size": 56,
        "num_classes": 5,
        "args": {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 16},
    },
    "timm:vit_tiny_patch16_224": {"image_size": 32, "num_classes": 5, "args": {"depth": 2}},
    "timm:deit_tiny_distilled_patch16_224": {"image_size": 32, "num_classes": 5, "args": {"depth": 2}},
}
CLASSIFIERS = [name for name in SHRUNK if "num_classes" in SHRUNK[name]]
READERS, WRITERS = list_models("bert-*"), list_models("gpt*")
TRANSLATORS = [*list_models("transformer-*"), *list_models("lstm-*")]


@pytest.fixture(scope="module", params=SHRUNK)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    torch.manual_seed(0)
    return wake(create_model(name, **SHRUNK[name])).eval()


@pytest.fixture
def inputs(name, model):
    """What its forward takes, three of each."""
    if name in TRANSLATORS:
        return {"input_ids": torch.randint(5, (3, 7)), "decoder_input_ids": torch.randint(5, (3, 6))}
    if name in READERS:
        mask = torch.arange(7) < torch.tensor([[7], [2], [5]])
        return {
            "input_ids": torch.randint(5, (3, 7)),
            "attention_mask": mask,
            "token_type_ids": torch.arange(21).view(3, 7) % 2,
        }
    if name in WRITERS:
        return {"input_ids": torch.randint(5, (3, 7))}
    return {"pixel_values": torch.randn(3, model.config.in_chans, *model.config.image_size)}


def test_logits_and_features_have_their_shapes(model, inputs):
    features, logits = model.forward_features(**inputs), model(**inputs)
    assert logits.shape[-1] == 5
    assert features.ndim == 3
    assert len(features) == len(logits) == 3
    assert features.isfinite().all()


def test_batch_of_one_is_batch_of_many(model, inputs):
    one_by_one = torch.cat([model(**{key: tensor[[i]] for key, tensor in inputs.items()}) for i in range(3)])
    torch.testing.assert_close(one_by_one, model(**inputs), atol=1e-5, rtol=1e-5)


LOCAL = ("transformer-tiny-half", "bert-mini-half", "bert-mini-windows", "gpt-tiny-half", "gpt-tiny-windows")
FAMILIES = [
    *("vit-tiny", "deit-tiny-distilled", "glit-tiny", "transformer-tiny", "bert-tiny", "gpt-tiny"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in LOCAL),
]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "-half" in name or "-windows" in name else [])
        for name in FAMILIES
    ],
    scope="module",
)
def test_exported_by_torch_it_takes_batches_of_any_size(model, inputs):
    any_size = {key: {0: torch.export.Dim("batch")} for key in inputs}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=any_size).module()
    for several in (inputs, {key: tensor[[0, 1, 2, 0, 1]] for key, tensor in inputs.items()}):
        torch.testing.assert_close(exported(**several), model(**several), atol=1e-6, rtol=1e-6)


def test_evaluation_is_deterministic(model, inputs):
    assert torch.equal(model(**inputs), model(**inputs))


def test_saved_and_loaded_is_the_same_to_the_bit(model, inputs, tmp_path):
    model.labels = list("abcde")
    model.save_pretrained(tmp_path)
    for loaded in (type(model).from_pretrained(tmp_path), load_model(tmp_path)):
        assert loaded.config == model.config
        assert loaded.labels == model.labels
        assert torch.equal(loaded.eval()(**inputs), model(**inputs))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", CLASSIFIERS, scope="module")
def test_another_number_of_classes_gives_a_new_head_and_keeps_the_rest(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, num_classes=7).eval()
    assert loaded(**inputs).shape == (3, 7)
    assert loaded.labels is None
    head = loaded.head_names()
    for key, tensor in loaded.state_dict().items():
        assert (key in head) or torch.equal(tensor, model.state_dict()[key])


def test_state_dict_does_not_depend_on_the_draw(name, model):
    other = create_model(name, **SHRUNK[name])
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_gradient_reaches_every_parameter(model, inputs):
    model.zero_grad()
    model.train()
    model(**inputs).square().sum().backward()
    model.eval()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@pytest.mark.parametrize("name", CLASSIFIERS, scope="module")
def test_head_is_a_part_of_the_whole(model):
    head = model.head_names()
    assert head
    assert set(head) < {name for name, _ in model.named_parameters()}


def test_double_precision(name, inputs):
    model = wake(create_model(name, **SHRUNK[name])).eval()
    single = model(**inputs)
    double = model.double()(**{key: t.double() if t.is_floating_point() else t for key, t in inputs.items()})
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-3)


# shrunk, the others are the same
translator = pytest.mark.parametrize(
    "name", [*list_models("transformer-tiny*"), *list_models("lstm-tiny")], scope="module"
)
lengths = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(torch.tensor)


def sentences(lengths):
    """Random sentences with anything behind their ends, and the mask that tells the ends."""
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.randint(5, mask.shape), mask


@translator
@settings(deadline=None, max_examples=20)
@given(at=st.integers(1, 5), seed=st.integers(0, 2**31))
@torch.no_grad()
def test_no_later_token_changes_an_earlier_answer(model, at, seed):
    torch.manual_seed(seed)
    source, target = torch.randint(5, (2, 7)), torch.randint(5, (2, 6))
    other = torch.cat([target[:, :at], (target[:, at:] + 1) % 5], dim=1)
    before, after = model(source, target), model(source, other)
    torch.testing.assert_close(before[:, :at], after[:, :at], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before[:, at:], after[:, at:])


@translator
@settings(deadline=None, max_examples=20)
@given(lengths=lengths, seed=st.integers(0, 2**31))
@torch.no_grad()
def test_a_sentence_is_translated_alone_as_among_longer_ones(model, lengths, seed):
    torch.manual_seed(seed)
    source, mask = sentences(lengths)
    target = torch.randint(5, (len(lengths), 6))
    logits = model(source, target, mask)
    for i, length in enumerate(lengths):
        alone = model(source[[i], :length], target[[i]])
        torch.testing.assert_close(logits[[i]], alone, atol=1e-5, rtol=1e-5)


@translator
@settings(deadline=None, max_examples=10)
@given(lengths=lengths, beams=st.integers(1, 3), seed=st.integers(0, 2**31))
@torch.no_grad()
def test_token_by_token_is_all_at_once_whichever_rows_go_on(model, lengths, beams, seed):
    """Beams change places within their sentence, and sentences leave, as a search has it."""
    torch.manual_seed(seed)
    source, mask = sentences(lengths)
    state = model.start(source, mask, beams=beams, max_new_tokens=6)
    target = torch.empty(len(source) * beams, 0, dtype=torch.long)
    for _ in range(6):
        target = torch.cat([target, torch.randint(5, (len(target), 1))], dim=1)
        rows = [t.repeat_interleave(beams, 0) for t in (source, mask)]
        expected = model(rows[0], target, rows[1])[:, -1]
        torch.testing.assert_close(model.step(target[:, -1], state), expected, atol=1e-5, rtol=1e-5)
        left = torch.randperm(len(source))[: max(1, len(source) - int(torch.randint(2, ())))].sort().values
        rows = (left[:, None] * beams + torch.randint(beams, (len(left), beams))).flatten()
        state.select(rows, left if len(left) < len(source) else None)
        source, mask, target = source[left], mask[left], target[rows]


# shrunk, the others are the same
reader = pytest.mark.parametrize("name", ["bert-base", "bert-mini-half", "bert-mini-windows"], scope="module")
writer = pytest.mark.parametrize("name", ["gpt", "gpt2", "gpt-tiny-half", "gpt-tiny-windows"], scope="module")


@reader
@settings(deadline=None, max_examples=20)
@given(lengths=lengths, seed=st.integers(0, 2**31))
@torch.no_grad()
def test_a_text_is_read_alone_as_among_longer_ones(model, lengths, seed):
    torch.manual_seed(seed)
    ids, mask = sentences(lengths)
    logits, features = model(ids, mask), model.forward_features(ids, mask)
    for i, length in enumerate(lengths):
        torch.testing.assert_close(logits[[i]], model(ids[[i], :length]), atol=1e-5, rtol=1e-5)
        alone = model.forward_features(ids[[i], :length])
        torch.testing.assert_close(features[[i], :length], alone, atol=1e-5, rtol=1e-5)


@writer
@settings(deadline=None, max_examples=20)
@given(at=st.integers(1, 5), seed=st.integers(0, 2**31))
@torch.no_grad()
def test_no_later_token_changes_what_was_expected_earlier(model, at, seed):
    torch.manual_seed(seed)
    ids = torch.randint(5, (2, 7))
    before, after = model(ids), model(torch.cat([ids[:, :at], (ids[:, at:] + 1) % 5], dim=1))
    torch.testing.assert_close(before[:, :at], after[:, :at], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before[:, at:], after[:, at:])


@writer
@settings(deadline=None, max_examples=10)
@given(lengths=lengths, beams=st.integers(1, 3), seed=st.integers(0, 2**31))
@torch.no_grad()
def test_prompts_go_on_token_by_token_as_if_each_were_alone(model, lengths, beams, seed):
    """Prompts are padded in front, beams change places within theirs, and prompts leave, as a search has it."""
    torch.manual_seed(seed)
    ids, mask = (tensor.flip(1) for tensor in sentences(lengths))
    state = model.start(ids, mask, beams=beams, max_new_tokens=6)
    texts = [row[own] for row, own in zip(ids, mask, strict=True) for _ in range(beams)]
    for _ in range(6):
        expected = model(pad_sequence(texts, batch_first=True))  # causal: what is behind a text changes nothing in it
        expected = torch.stack([row[len(text) - 1] for row, text in zip(expected, texts, strict=True)])
        logits = model.step(torch.stack([text[-1] for text in texts]), state)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        prompts = len(texts) // beams
        left = torch.randperm(prompts)[: max(1, prompts - int(torch.randint(2, ())))].sort().values
        rows = (left[:, None] * beams + torch.randint(beams, (len(left), beams))).flatten()
        state.select(rows, left if len(left) < prompts else None)
        texts = [torch.cat([texts[row], torch.randint(5, (1,))]) for row in rows]
