"""GLiT-Tiny as it was released, and its authors' checkpoints, beside their formulas written out by key."""

from argparse import Namespace

import pytest
import torch
from torch.nn import functional as F

from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig
from glocal.models import GLiT, ViTConfig, create_model, load_model
from glocal.models.cost import count


def test_glit_tiny_is_the_released_one():
    model = create_model("glit-tiny")
    cost = count(model, (224, 224))
    assert cost.parameters == 7_264_456
    assert round(cost.macs / 1e6, 1) == 1472.9
    assert round((cost.macs - model.unpublished_macs()) / 1e6, 1) == 1332.5
    heads = [block.num_heads - block.local_heads for block in model.config.blocks]
    assert heads == [3, 0, 1, 3, 0, 1, 3, 1, 0, 3, 0, 3]


def authors_state(blocks, dim=192, classes=5, patch=4, side=4):
    """Random tensors under the authors' names; `blocks` gives (global heads, d_k, K, E, d_z)."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, side**2 + 1, dim), "norm.weight": (dim,), "norm.bias": (dim,)}
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    shapes |= {"head.weight": (classes, dim), "head.bias": (classes,)}
    for i, (heads, d_k, kernel, e, d_z) in enumerate(blocks):
        far, hidden = 64 * heads, (dim - 64 * heads) * e
        near, wide = dim - far, int(far * d_k)
        block = {"norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,)}
        block |= {"mlp.fc1.weight": (d_z * dim, dim), "mlp.fc1.bias": (d_z * dim,)}
        block |= {"mlp.fc2.weight": (dim, d_z * dim), "mlp.fc2.bias": (dim,)}
        if far:
            block |= {"attn.qkv.weight": (3 * wide, far), "attn.qkv.bias": (3 * wide,)}
            block |= {"attn.proj.weight": (far, wide), "attn.proj.bias": (far,)}
        if near:
            block |= {"attn.net.1.weight": (2 * hidden, near, 1), "attn.net.1.bias": (2 * hidden,)}
            block |= {"attn.net.3.conv.weight": (hidden, 1, kernel), "attn.net.3.conv.bias": (hidden,)}
            block |= {f"attn.net.4.{name}": (hidden,) for name in ("weight", "bias", "running_mean", "running_var")}
            block |= {"attn.net.4.num_batches_tracked": ()}
            block |= {"attn.net.6.weight": (near, hidden, 1), "attn.net.6.bias": (near,)}
        shapes |= {f"blocks.{i}.0.{name}": shape for name, shape in block.items()}
    state = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
    return {
        name: tensor.abs() + 0.5 if name.endswith("running_var") else tensor.long() if "tracked" in name else tensor
        for name, tensor in state.items()
    }


def authors_logits(state, images, blocks, dim=192):
    """What their network computes in evaluation."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (dim,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], dim=1) + state["pos_embed"]
    for i, (heads, _, kernel, _, _) in enumerate(blocks):
        name, y = f"blocks.{i}.0", norm(x, f"blocks.{i}.0.norm1")
        parts = []
        if heads:
            q, k, v = linear(y[..., : 64 * heads], f"{name}.attn.qkv").chunk(3, dim=-1)
            q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
            z = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
            parts.append(linear(z.transpose(1, 2).flatten(2), f"{name}.attn.proj"))
        if heads < 3:
            net = {key.split(".net.")[1]: t for key, t in state.items() if key.startswith(f"{name}.attn.net.")}
            value, gate = F.conv1d(y[..., 64 * heads :].mT, net["1.weight"], net["1.bias"]).chunk(2, dim=1)
            z, pad = value * gate.sigmoid(), kernel // 2
            z = F.conv1d(F.pad(z, (pad, pad)), net["3.conv.weight"], net["3.conv.bias"], groups=z.shape[1])
            z = F.batch_norm(z, net["4.running_mean"], net["4.running_var"], net["4.weight"], net["4.bias"])
            parts.append(F.conv1d(z * z.sigmoid(), net["6.weight"], net["6.bias"]).mT)
        x = x + torch.cat(parts, dim=-1)
        x = x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


RELEASED = [
    (3, 0.5, 31, 0, 4),
    (0, 1, 31, 2, 4),
    (1, 1, 31, 4, 6),
    (0, 1, 45, 4, 4),
    (1, 1, 31, 4, 2),
    (3, 2, 31, 0, 6),
]


def test_a_checkpoint_of_the_authors_gives_their_logits(tmp_path):
    state = authors_state(RELEASED)
    torch.save({"model": state, "args": Namespace(model="glit"), "epoch": 299}, tmp_path / "glit_tiny.pth.tar")
    model = GLiT.from_pretrained(tmp_path / "glit_tiny.pth.tar").eval()
    assert model.config.image_size == (16, 16)
    assert model.config.blocks[2] == BlockConfig(
        embed_dim=192, num_heads=3, local_heads=2, expand_ratio=4, mlp_ratio=6.0
    )
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = authors_logits(state, images, RELEASED)
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)
        model.save_pretrained(tmp_path / "ours")
        torch.testing.assert_close(load_model(tmp_path / "ours").eval()(images), expected, atol=1e-5, rtol=0)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth.tar")
    with pytest.raises(GlocalError, match="not named and shaped as in the GLiT"):
        GLiT.from_pretrained(tmp_path / "other.pth.tar")
    (tmp_path / "notes.txt").write_text("no tensors")
    with pytest.raises(GlocalError, match=r"notes\.txt"):
        GLiT.from_pretrained(tmp_path / "notes.txt")


def test_a_searched_model_moves_to_another_resolution(tmp_path):
    blocks = tuple(BlockConfig(embed_dim=12, num_heads=3, local_heads=n, kernel_size=3) for n in (0, 1, 3))
    model = GLiT(ViTConfig(image_size=(16, 16), num_classes=3, patch_size=4, blocks=blocks))
    model.save_pretrained(tmp_path)
    assert load_model(tmp_path, image_size=24).eval()(torch.randn(2, 3, 24, 24)).shape == (2, 3)
