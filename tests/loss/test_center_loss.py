import pytest
import torch
import torch.nn.functional as F

from handclip.loss.center_loss import CenterLoss
from handclip.loss.loss_factory import build_loss


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_formula_in_value_and_gradient(normalize):
    torch.manual_seed(0)
    loss = CenterLoss(4, 6, normalize=normalize)
    start = loss.centers.clone()
    features, labels = torch.randn(5, 6, requires_grad=True), torch.tensor([0, 3, 3, 1, 0])

    value = loss(features, labels)
    value.backward()

    z = F.normalize(features.detach()) if normalize else features.detach()
    offsets = z - start[labels]
    assert value.item() == pytest.approx(sum(offsets[i].dot(offsets[i]).item() for i in range(5)) / 10, rel=1e-5)
    if not normalize:
        torch.testing.assert_close(features.grad, offsets / 5)
    expected = start + 0.5 * torch.zeros(4, 6).index_add(0, labels, offsets / 5)
    torch.testing.assert_close(loss.centers, expected)


def train_centers(weight, steps=40, factor=1.0):
    """Train with an optimizer over all of the criterion's parameters, as one plainly does."""
    torch.manual_seed(0)
    criterion = build_loss([{"type": "center", "weight": weight}, {"type": "cross_entropy"}], 3, 4)
    labels = torch.arange(12) % 3
    features = 3.0 * labels[:, None] + 0.1 * torch.randn(12, 4)
    optimizer = torch.optim.Adam(criterion.parameters(), lr=1e-4)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        output = criterion(features=features, labels=labels)
        (factor * output.total).backward()
        optimizer.step()
        values.append(output.terms["center"].item())
    return values, criterion.terms["center"].centers


@pytest.mark.parametrize("factor", [1.0, 2.0**16], ids=["", "as a gradient scaler"])
def test_d31_center_loss_decreases_whatever_its_weight(factor):
    values, centers = train_centers(weight=5e-4, factor=factor)
    same_values, same_centers = train_centers(weight=1.0)

    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.01 * values[0]
    assert values == pytest.approx(same_values, rel=1e-4)
    torch.testing.assert_close(centers, same_centers, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(centers.mean(dim=1), torch.tensor([0.0, 3.0, 6.0]), atol=0.1, rtol=0)


def test_centres_are_moved_as_plain_sgd_moves_them_to_the_last_bit():
    torch.manual_seed(0)
    criterion = build_loss([{"type": "center", "weight": 3e-4, "lr": 0.3}, {"type": "cross_entropy"}], 5, 8)
    expected = criterion.terms["center"].centers.clone().requires_grad_()
    optimizer = torch.optim.SGD([expected], lr=0.3)
    for _ in range(20):
        features, labels = torch.randn(9, 8), torch.randint(5, (9,))
        (3e-4 * (features - expected[labels]).square().sum() / 18).backward()
        expected.grad.div_(3e-4)
        optimizer.step()
        optimizer.zero_grad()
        criterion(features=features, labels=labels).total.backward()
        assert torch.equal(criterion.terms["center"].centers, expected)


def test_centres_stay_where_nothing_is_trained():
    criterion = build_loss([{"type": "center"}], 3, 4)
    features, labels, before = torch.randn(6, 4, requires_grad=True), torch.arange(6) % 3, criterion.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():
        criterion(features=features, labels=labels)
    criterion.eval()
    criterion(features=features, labels=labels).total.backward()
    assert features.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in criterion.state_dict().items())


def test_centres_stay_where_the_total_is_multiplied_by_0():
    criterion = build_loss([{"type": "center"}], 3, 4)
    before = criterion.terms["center"].centers.clone()
    (0.0 * criterion(features=torch.randn(6, 4), labels=torch.arange(6) % 3).total).backward()
    assert torch.equal(criterion.terms["center"].centers, before)


def test_centres_move_by_what_both_of_two_batches_ask_for():
    torch.manual_seed(0)
    criterion = build_loss([{"type": "center"}], 3, 4)
    centers = criterion.terms["center"].centers
    batches = [(torch.randn(6, 4), torch.arange(6) % 3) for _ in range(2)]
    expected = centers + sum(
        0.5 * torch.zeros(3, 4).index_add(0, labels, (features - centers[labels]) / 6) for features, labels in batches
    )
    sum(criterion(features=features, labels=labels).total for features, labels in batches).backward()
    torch.testing.assert_close(criterion.terms["center"].centers, expected)
