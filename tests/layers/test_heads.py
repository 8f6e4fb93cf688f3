import torch

from glocal.layers.heads import ClassificationHead


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
