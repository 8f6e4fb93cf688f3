"""What is the LSTM's own: two directions, Luong's equations, and a size to be compared with."""

import pytest
import torch

from glocal.errors import GlocalError
from glocal.models import create_model

SHAPE = {"vocab_size": 40, "embed_dim": 12, "hidden_dim": 16, "depth": 2}
LENGTHS = (7, 3, 5)


@pytest.fixture
def model():
    return create_model("lstm-tiny", **SHAPE).eval()


@pytest.fixture
def batch():
    """Three sentences of several lengths with anything behind their ends, and five tokens of translation each."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return {
        "input_ids": torch.randint(3, 40, mask.shape),
        "decoder_input_ids": torch.randint(3, 40, (3, 5)),
        "attention_mask": mask,
    }


@torch.no_grad()
def test_the_decoder_starts_where_both_directions_ended(model, batch):
    context, (hidden, cells) = model.encode(batch["input_ids"], batch["attention_mask"])
    for i, length in enumerate(LENGTHS):
        from_left, from_right = context[i, length - 1, :8], context[i, 0, 8:]  # each direction's last step
        torch.testing.assert_close(hidden[-1, i], torch.cat([from_left, from_right]))
        _, (_, alone) = model.encoder(model.embedding(batch["input_ids"][[i], :length]) * 12**0.5)
        torch.testing.assert_close(cells[:, i], alone.view(2, 16))  # a layer's directions beside each other


@torch.no_grad()
def test_the_decoder_is_what_its_equations_say(model, batch):
    features = model.forward_features(**batch)
    context, states = model.encode(batch["input_ids"], batch["attention_mask"])
    h, _ = model.decoder(model.embedding(batch["decoder_input_ids"]) * 12**0.5, states)
    w_a, w_c = model.cross.score.weight, model.combine.weight
    for i, length in enumerate(LENGTHS):
        seen = context[i, :length]
        weights = torch.stack([torch.stack([h_t @ w_a.T @ h_s for h_s in seen]) / 16**0.5 for h_t in h[i]]).softmax(-1)
        expected = (torch.cat([weights @ seen, h[i]], dim=-1) @ w_c.T).tanh()
        torch.testing.assert_close(features[i], expected, atol=1e-5, rtol=0)
        looked = model.cross.weights(h[i : i + 1], context[i : i + 1, :length])
        torch.testing.assert_close(looked[0, 0], weights, atol=1e-5, rtol=0)


def test_forget_gates_begin_open():
    lstm = create_model("lstm-tiny", **SHAPE).decoder
    gates = (lstm.bias_ih_l1 + lstm.bias_hh_l1).view(4, 16)  # input, forget, cell, output
    assert torch.equal(gates, torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None].expand(4, 16))


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_as_many_parameters_as_the_transformer(size):
    with torch.device("meta"):
        lstm, transformer = (
            sum(p.numel() for name, p in model.named_parameters() if name != "embedding.weight")
            for model in (create_model(f"lstm-{size}"), create_model(f"transformer-{size}"))
        )
    assert lstm == pytest.approx(transformer, rel=0.06)


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(GlocalError, match="hidden_dim 15 is odd"):
        create_model("lstm-tiny", **SHAPE | {"hidden_dim": 15})
    assert create_model("lstm-tiny", **SHAPE | {"depth": 1}).encoder.num_layers == 1  # without torch's warning
