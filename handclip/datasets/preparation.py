"""What is to be prepared, and how."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from handclip.config.experiment import HAND_ASPECTS, SINGLE_ASPECT
from handclip.config.path_pattern import PLAIN, PathPattern
from handclip.errors import ConfigError, did_you_mean

ASPECTS: Mapping[str, tuple[str, ...]] = {
    "11k": HAND_ASPECTS,
    **{dataset: (aspect,) for dataset, aspect in SINGLE_ASPECT.items()},
}
"""The aspects of each data set."""

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)` after each image."""


@dataclass(frozen=True)
class Preparation:
    """A data set, and how its manifests are made.

    Raises:
        ConfigError: an unknown data set, or an option that it does not have.
    """

    dataset: str
    """`11k`, `hd` or `folder`."""
    root: Path
    """Where it lies."""
    seed: int | None = 0
    """Of the random choices; None where somebody else has made them."""
    num_draws: int = 10
    """Of query and gallery."""
    allow_missing: bool = False
    """Leave out and count absent or unreadable images, and identities of which nothing is read while there is
    something, instead of refusing."""
    deterministic_gallery: bool = False
    """`hd` only: the gallery image is the first of each identity, not a random one."""
    pattern: str | None = None
    """`folder` only: says whose each photograph is by its path, see `PathPattern`; None is `{identity}/*`."""
    progress: Progress | None = None

    def __post_init__(self) -> None:
        require_known(self.dataset)
        if self.num_draws < 1:
            raise ConfigError(f"the number of draws must be at least 1, not {self.num_draws}")
        if self.deterministic_gallery and self.dataset != "hd":
            raise ConfigError(f"a deterministic gallery is defined for hd only, not for {self.dataset}")
        if self.pattern is not None and self.dataset != "folder":
            raise ConfigError(f"a pattern is for the data set folder, not for {self.dataset}")
        try:
            PathPattern(self.pattern or PLAIN)
        except ValueError as error:
            raise ConfigError(f"pattern: {error}") from error
        object.__setattr__(self, "pattern", None if self.pattern == PLAIN else self.pattern)


def require_known(dataset: str) -> None:
    """Check that a data set is one that can be prepared.

    Raises:
        ConfigError: names the nearest that is.
    """
    if dataset == "synthetic":
        raise ConfigError(
            "dataset: synthetic draws hands and prepares them by itself. To prepare drawn hands, with another seed, "
            "call them what their layout is: handclip prepare 11k --root DIR --out DIR"
        )
    if dataset not in ASPECTS:
        raise ConfigError(f"there is no data set '{dataset}'.{did_you_mean(dataset, ASPECTS)}")
