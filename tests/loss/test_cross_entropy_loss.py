import math

import pytest
import torch
import torch.nn.functional as F

from handclip.loss.cross_entropy_loss import CrossEntropyLoss


def test_starts_with_equal_odds_for_every_identity():
    torch.manual_seed(0)
    loss = CrossEntropyLoss(72, 16)

    assert loss(torch.zeros(4, 16), torch.arange(4)).item() == pytest.approx(math.log(72))
    assert loss.classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not loss.classifier.bias.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equals_the_formula(smoothing):
    torch.manual_seed(0)
    loss = CrossEntropyLoss(5, 8, label_smoothing=smoothing)
    with torch.no_grad():
        loss.classifier.weight.normal_()
        loss.classifier.bias.normal_()
    features, labels = torch.randn(6, 8), torch.tensor([0, 4, 2, 2, 1, 3])

    log_p = (features @ loss.classifier.weight.T + loss.classifier.bias).softmax(dim=1).log()
    expected = 0.0
    for i, y in enumerate(labels.tolist()):
        expected += (1 - smoothing) * -log_p[i, y].item() + smoothing / 5 * -log_p[i].sum().item()

    assert loss(features, labels).item() == pytest.approx(expected / 6, rel=1e-5)


def test_gradient_is_probability_minus_target():
    torch.manual_seed(0)
    loss = CrossEntropyLoss(5, 8)
    features, labels = torch.randn(6, 8, requires_grad=True), torch.tensor([0, 4, 2, 2, 1, 3])

    loss(features, labels).backward()

    residual = (loss.classifier(features).softmax(dim=1) - F.one_hot(labels, 5)) / 6
    torch.testing.assert_close(features.grad, residual @ loss.classifier.weight)
    torch.testing.assert_close(loss.classifier.weight.grad, residual.T @ features)
    torch.testing.assert_close(loss.classifier.bias.grad, residual.sum(dim=0))
