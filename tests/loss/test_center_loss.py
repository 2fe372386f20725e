import pytest
import torch
import torch.nn.functional as F

from handclip.loss.center_loss import CenterLoss
from handclip.loss.loss_factory import build_loss


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_formula_in_value_and_gradient(normalize):
    torch.manual_seed(0)
    loss = CenterLoss(4, 6, normalize=normalize)
    features, labels = torch.randn(5, 6, requires_grad=True), torch.tensor([0, 3, 3, 1, 0])

    value = loss(features, labels)
    value.backward()

    z = F.normalize(features.detach()) if normalize else features.detach()
    offsets = z - loss.centers.detach()[labels]
    assert value.item() == pytest.approx(sum(offsets[i].dot(offsets[i]).item() for i in range(5)) / 10, rel=1e-5)
    if not normalize:
        torch.testing.assert_close(features.grad, offsets / 5)
    expected = torch.zeros(4, 6).index_add(0, labels, -offsets / 5)
    torch.testing.assert_close(loss.centers.grad, expected)


def train_centers(weight, steps=40):
    torch.manual_seed(0)
    criterion = build_loss([{"type": "center", "weight": weight}], num_classes=3, feature_dim=4)
    labels = torch.arange(12) % 3
    features = 3.0 * labels[:, None] + 0.1 * torch.randn(12, 4)
    groups = [{"params": [centers], "lr": lr} for centers, lr in criterion.center_parameters()]
    optimizer = torch.optim.SGD(groups)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        output = criterion(features=features, labels=labels)
        output.total.backward()
        criterion.unweight_center_gradients()
        optimizer.step()
        values.append(output.terms["center"].item())
    return values, criterion.terms["center"].centers.detach()


def test_d31_center_loss_decreases_whatever_its_weight():
    values, centers = train_centers(weight=5e-4)
    same_values, same_centers = train_centers(weight=1.0)

    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.01 * values[0]
    assert values == pytest.approx(same_values, rel=1e-4)
    torch.testing.assert_close(centers, same_centers, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(centers.mean(dim=1), torch.tensor([0.0, 3.0, 6.0]), atol=0.1, rtol=0)


def test_unweighting_leaves_everything_but_the_centres_alone():
    torch.manual_seed(0)
    criterion = build_loss([{"type": "cross_entropy", "weight": 0.5}, {"type": "center", "weight": 0.25}], 3, 4)
    criterion.unweight_center_gradients()  # no gradient yet
    criterion(features=torch.randn(6, 4), labels=torch.arange(6) % 3).total.backward()
    before = {name: parameter.grad.clone() for name, parameter in criterion.named_parameters()}

    criterion.unweight_center_gradients()

    for name, parameter in criterion.named_parameters():
        factor = 4 if name == "terms.center.centers" else 1
        torch.testing.assert_close(parameter.grad, before[name] * factor)
