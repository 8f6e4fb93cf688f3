"""What every model owes, whichever family it is of; each is built in its own shape, shrunk."""

import pytest
import torch
from conftest import TINY, wake

from glocal.models import create_model, list_models, load_model

SHRUNK = dict.fromkeys(list_models(), TINY) | {
    # The CNN of a hybrid halves the image five times; its blocks see one cell a patch.
    name: TINY | {"image_size": 64, "patch_size": 1}
    for name in list_models("vit-base-r*")
}
SHRUNK |= {
    # Its blocks differ, and stay as many as they are.
    "glit-tiny": {key: value for key, value in TINY.items() if key != "depth"} | {"kernel_size": 3},
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


@pytest.fixture(scope="module", params=SHRUNK)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    torch.manual_seed(0)
    return wake(create_model(name, **SHRUNK[name])).eval()


@pytest.fixture
def images(model):
    return torch.randn(3, model.config.in_chans, *model.config.image_size)


def test_logits_and_features_have_their_shapes(model, images):
    features = model.forward_features(images)
    assert model(images).shape == (3, 5)
    assert features.ndim == 3
    assert len(features) == 3
    assert features.isfinite().all()


def test_batch_of_one_is_batch_of_many(model, images):
    one_by_one = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(one_by_one, model(images), atol=1e-5, rtol=1e-5)


def test_evaluation_is_deterministic(model, images):
    assert torch.equal(model(images), model(images))


def test_saved_and_loaded_is_the_same_to_the_bit(model, images, tmp_path):
    model.labels = list("abcde")
    model.save_pretrained(tmp_path)
    for loaded in (type(model).from_pretrained(tmp_path), load_model(tmp_path)):
        assert loaded.config == model.config
        assert loaded.labels == model.labels
        assert torch.equal(loaded.eval()(images), model(images))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_another_number_of_classes_gives_a_new_head_and_keeps_the_rest(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, num_classes=7).eval()
    assert loaded(images).shape == (3, 7)
    assert loaded.labels is None
    head = loaded.head_names()
    for key, tensor in loaded.state_dict().items():
        assert (key in head) or torch.equal(tensor, model.state_dict()[key])


def test_state_dict_does_not_depend_on_the_draw(name, model):
    other = create_model(name, **SHRUNK[name])
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_gradient_reaches_every_parameter(model, images):
    model.zero_grad()
    model.train()
    model(images).square().sum().backward()
    model.eval()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_head_is_a_part_of_the_whole(model):
    head = model.head_names()
    assert head
    assert set(head) < {name for name, _ in model.named_parameters()}


def test_double_precision(name, images):
    model = wake(create_model(name, **SHRUNK[name])).eval()
    single = model(images)
    double = model.double()(images.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-3)
