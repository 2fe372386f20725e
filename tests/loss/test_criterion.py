from typing import Any

import pytest
import torch
from torch import Tensor

from handclip.config.loading import parse_config
from handclip.loss.criterion import TrainingCriterion
from handclip.loss.loss_factory import build_criterion, build_loss
from handclip.models.embedding_model import Embedding

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def criterion_for(losses: list[dict[str, Any]], dims: dict[str, int]) -> TrainingCriterion:
    config = parse_config({"experiment": "a", "model": "m", "dataset": "11k", "losses": losses}, "test")
    torch.manual_seed(0)
    return build_criterion(config.losses, 3, dims)


def embedding(dim: int, seed: int, neck: bool = False) -> Embedding:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(6, dim, generator=random, requires_grad=True)
    return Embedding(features, torch.randn(6, dim, generator=random, requires_grad=True) if neck else features)


def test_one_embedding_keeps_the_names_of_its_terms() -> None:
    losses = [{"type": "cross_entropy"}, {"type": "triplet", "weight": 0.5}]
    criterion = criterion_for(losses, {"projected": 8})
    given = embedding(8, 0)
    output = criterion(embeddings={"projected": given}, labels=LABELS)
    assert list(output.terms) == ["cross_entropy", "triplet"]
    torch.testing.assert_close(output.total, output.terms["cross_entropy"] + 0.5 * output.terms["triplet"])


def test_several_embeddings_have_their_own_losses_and_are_summed() -> None:
    losses = [{"type": "cross_entropy"}, {"type": "arcface", "weight": 2.0}]
    criterion = criterion_for(losses, {"before_projection": 8, "projected": 5})
    given = {"before_projection": embedding(8, 0), "projected": embedding(5, 1)}
    output = criterion(embeddings=given, labels=LABELS)
    assert list(output.terms) == [
        "before_projection/cross_entropy",
        "before_projection/arcface",
        "projected/cross_entropy",
        "projected/arcface",
    ]
    expected = sum(value * (2 if name.endswith("arcface") else 1) for name, value in output.terms.items())
    torch.testing.assert_close(output.total, expected)
    output.total.backward()
    assert all(e.features.grad is not None for e in given.values())


def test_classifiers_see_the_neck_and_metric_losses_do_not() -> None:
    losses = [{"type": "cross_entropy"}, {"type": "triplet"}, {"type": "center"}, {"type": "arcface"}]
    given = embedding(8, 0, neck=True)
    for loss in losses:
        given.features.grad = given.neck_features.grad = None
        criterion_for([loss], {"projected": 8})(embeddings={"projected": given}, labels=LABELS).total.backward()
        on_neck = loss["type"] in ("cross_entropy", "arcface")
        assert (given.neck_features.grad is not None) is on_neck
        assert (given.features.grad is not None) is not on_neck


def test_centres_of_every_embedding_move_whatever_the_weight() -> None:
    criterion = criterion_for([{"type": "center", "weight": 0.01, "lr": 0.25}], {"a": 4, "b": 6})
    before = {name: value.clone() for name, value in criterion.state_dict().items()}
    given = {"a": embedding(4, 0), "b": embedding(6, 1)}
    criterion(embeddings=given, labels=LABELS).total.backward()
    for name, one in given.items():
        # Half the mean squared distance: each centre's gradient is the sum of (centre - feature) over its images, / B.
        key = f"by_embedding.{name}.terms.center.centers"
        gradient = (before[key][LABELS] - one.features.detach()) / len(LABELS)
        expected: Tensor = before[key] - 0.25 * torch.zeros_like(before[key]).index_add_(0, LABELS, gradient)
        torch.testing.assert_close(criterion.state_dict()[key], expected)


def test_everything_learned_is_in_the_state_dict() -> None:
    losses = [{"type": "cross_entropy"}, {"type": "center"}, {"type": "arcface"}]
    criterion = criterion_for(losses, {"a": 4})
    learned = {name for name, _ in (*criterion.named_parameters(), *criterion.named_buffers())}
    assert learned == set(criterion.state_dict())
    single = build_loss(losses, 3, 4)
    assert len(criterion.state_dict()) == len(single.state_dict()) == 4


@pytest.mark.parametrize("labels", [torch.tensor([0, 0, 1, 1, 2, 3]), torch.tensor([0, 1])])
def test_labels_that_do_not_fit_are_an_error(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="label"):
        criterion_for([{"type": "cross_entropy"}], {"a": 4})(embeddings={"a": embedding(4, 0)}, labels=labels)
