import pytest
import torch

from handclip.errors import TrainingError
from handclip.loss.criterion import LossOutput
from handclip.training.step import FiniteCheck

FINE, NORM = LossOutput(torch.tensor(1.5), {"cross_entropy": torch.tensor(1.5)}), torch.tensor(2.0)
BAD = LossOutput(torch.tensor(float("nan")), {"cross_entropy": torch.tensor(float("nan"))})


def test_a_bad_step_is_refused_at_once() -> None:
    check = FiniteCheck(one_step_late=False)
    check.add(0, 0, FINE, NORM)
    with pytest.raises(TrainingError, match="in epoch 1, step 2: cross_entropy is nan"):
        check.add(0, 1, BAD, NORM)


def test_one_step_late_it_is_refused_after_the_next_one_and_named_by_its_own_number() -> None:
    check = FiniteCheck(one_step_late=True)
    check.add(2, 6, BAD, NORM)
    with pytest.raises(TrainingError, match="in epoch 3, step 7: cross_entropy is nan"):
        check.add(2, 7, FINE, NORM)


@pytest.mark.parametrize(
    ("output", "norm", "named"),
    [
        (BAD, NORM, "cross_entropy is nan"),
        (FINE, torch.tensor(float("inf")), "the gradient overflows"),
        (LossOutput(torch.tensor(float("inf")), FINE.terms), NORM, "the weighted sum overflows"),
    ],
)
def test_finishing_refuses_the_last_step(output: LossOutput, norm: torch.Tensor, named: str) -> None:
    check = FiniteCheck(one_step_late=True)
    check.add(0, 0, FINE, NORM)
    check.add(0, 1, output, norm)
    with pytest.raises(TrainingError, match=named):
        check.finish()
    check.finish()  # once said is enough


def test_late_judgement_does_not_read_the_newest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bool] = []
    plain = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: read.append(plain(tensor)) or read[-1])
    check = FiniteCheck(one_step_late=True)
    for step, expected in enumerate((0, 1, 2)):
        check.add(0, step, FINE, NORM)
        assert len(read) == expected


def test_a_waiting_step_holds_no_graph() -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = (weight**2).sum()
    check = FiniteCheck(one_step_late=True)
    check.add(0, 0, LossOutput(loss, {"sum": loss * 1}), NORM)
    waiting = check._waiting
    assert waiting is not None
    assert all(tensor.grad_fn is None for tensor in (waiting.total, waiting.finite, *waiting.terms.values()))
