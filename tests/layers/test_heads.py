import pytest
import torch

from glocal.layers.heads import ClassificationHead, TokenHead


def test_a_head_reads_the_class_token_the_mean_or_both_tokens():
    tokens = torch.randn(2, 5, 8)
    token, mean, both = (
        ClassificationHead(8, 3),
        ClassificationHead(8, 3, pool="mean"),
        ClassificationHead(8, 3, distilled=True),
    )
    torch.testing.assert_close(token(tokens)[:, 0], token.classifier(tokens[:, 0]))
    torch.testing.assert_close(mean(tokens)[:, 0], mean.classifier(tokens.mean(1)))
    assert both(tokens).shape == (2, 2, 3)
    torch.testing.assert_close(both(tokens)[:, 1], both.distillation(tokens[:, 1]))


def test_a_pooler_stands_before_the_classifier():
    tokens, head = torch.randn(2, 5, 8), ClassificationHead(8, 3, pooler=True)
    torch.testing.assert_close(head(tokens)[:, 0], head.classifier(torch.tanh(head.pooler(tokens[:, 0]))))
    assert {name.rpartition(".")[0] for name in head.state_dict()} == {"pooler", "classifier"}


@pytest.mark.parametrize("pool", ["token", "mean", "last"])
@pytest.mark.parametrize("side", ["behind", "in front"])
def test_padding_is_not_read(pool, side):
    if (pool, side) == ("token", "in front"):
        pytest.skip("the class token is the first, so padding stands behind")
    head, lengths = ClassificationHead(8, 3, pool=pool, bias=False), torch.tensor([5, 1, 3])
    mask = torch.arange(5) < lengths[:, None]
    mask = mask if side == "behind" else mask.flip(1)
    tokens = torch.randn(3, 5, 8)
    alone = torch.cat([head(example[own][None]) for example, own in zip(tokens, mask, strict=True)])
    torch.testing.assert_close(head(tokens, mask), alone)
    torch.testing.assert_close(head(tokens, torch.ones_like(mask)), head(tokens))
    if pool == "last":
        torch.testing.assert_close(alone[0, 0], head.classifier(tokens[0, -1]))


@pytest.mark.parametrize("head", [ClassificationHead(8, 3, pool="last", dropout=0.5), TokenHead(8, 3, dropout=0.5)])
def test_dropout_is_for_training(head):
    tokens = torch.randn(4, 5, 8)
    assert not torch.equal(head.train()(tokens), head(tokens))
    assert torch.equal(head.eval()(tokens), head(tokens))


def test_each_token_answers_for_itself():
    tokens, head = torch.randn(2, 5, 8), TokenHead(8, 3)
    logits = head(tokens)
    assert logits.shape == (2, 5, 3)
    torch.testing.assert_close(logits[:, 2], head.classifier(tokens[:, 2]))
