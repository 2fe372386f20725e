"""Several experiments one after the other, for one comparison."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from handclip.config.experiment import ExperimentConfig
from handclip.engine.evaluation import Evaluation, evaluate, require_no_evaluation
from handclip.engine.training import TrainingResult, train
from handclip.errors import HandCLIPError

_SHORT_NAMES = {"cross_entropy": "ce"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A trained (or, for a baseline, merely loaded) and evaluated experiment."""

    config: ExperimentConfig
    training: TrainingResult | None
    evaluation: Evaluation

    @property
    def stage(self) -> str:
        """The stage of the study: 0 trains nothing, 1 starts from pre-trained weights, 2 from stage 1."""
        if self.training is None:
            return "0"
        return "1" if self.config.resume_from is None else "2"

    @property
    def losses(self) -> str:
        """The losses by their short names, as in the config files' names."""
        return (
            " + ".join(_SHORT_NAMES.get(loss.type, loss.type) for loss in self.config.losses) if self.training else "-"
        )


@dataclass(frozen=True)
class Failure:
    """An experiment that broke off, and why."""

    config: ExperimentConfig
    error: HandCLIPError


def run_experiment(config: ExperimentConfig, *, resume: bool = False) -> Outcome:
    """Train where there is something to train, then evaluate.

    Raises:
        HandCLIPError: see `train` and `evaluate`.
    """
    if config.variant == "finetuned" and not resume:
        require_no_evaluation(config)
    training = train(config, resume=resume) if config.variant == "finetuned" else None
    return Outcome(config, training, evaluate(config, reuse=resume))


def run_experiments(
    configs: Sequence[ExperimentConfig], *, resume: bool = False, keep_going: bool = False
) -> tuple[list[Outcome], list[Failure]]:
    """Run experiments in order; the next may go on from what an earlier one saved.

    Args:
        configs: the experiments.
        resume: go on with what was interrupted, and keep what has ended.
        keep_going: when one fails, go on with the next.

    Returns:
        What succeeded and, with `keep_going`, what failed.

    Raises:
        HandCLIPError: an experiment failed, without `keep_going`.
    """
    outcomes, failures = [], []
    for number, config in enumerate(configs, start=1):
        losses = " + ".join(loss.type for loss in config.losses) if config.variant == "finetuned" else "no training"
        logger.info(f"\n[{number}/{len(configs)}] {config.experiment}, {config.model}: {losses}")
        try:
            outcomes.append(run_experiment(config, resume=resume))
        except HandCLIPError as error:
            if not keep_going:
                raise
            logger.error(f"Failed: {error}")
            failures.append(Failure(config, error))
    return outcomes, failures
