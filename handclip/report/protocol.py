"""How runs and published results were measured, on which it depends what may stand beside what."""

from dataclasses import dataclass

from handclip.plurals import counted
from handclip.report.runs import TrainedOn

_NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Protocol:
    """Everything that two runs must share to be compared, and thus what makes a block.

    Args:
        dataset: data set of the test images.
        aspect: aspect, or `all` for the mean over several.
        manifest_sha256: which images, people and draws; None for published results, each on draws of its own.
        gallery_protocol: `gallery` or `gallery_all`.
        gallery_images: size of the gallery in each aspect.
        flip: `none` or `sum`.
        rerank: (k1, k2, lambda) of the re-ranking; None: not re-ranked.
        draws: how many draws are averaged.
        trained_on: the data that the models were trained on, where it is other than the test images': in cross-domain
            evaluations, and in single aspects of models that were trained on all of them.
    """

    dataset: str
    aspect: str
    manifest_sha256: str | None
    gallery_protocol: str
    gallery_images: tuple[int, ...]
    flip: str
    rerank: tuple[int, int, float] | None
    draws: int
    trained_on: TrainedOn | None

    @property
    def label(self) -> str:
        """All of it in words."""
        aspects = len(self.gallery_images)
        data = f"{self.dataset}, mean of {_NUMBERS.get(aspects, aspects)} aspects"
        rerank = "none" if self.rerank is None else "k1 {}, k2 {}, lambda {:g}".format(*self.rerank)
        of_own = "published results, each on draws of its own"
        parts = [
            data if aspects > 1 else f"{self.dataset} {self.aspect}",
            f"{self.gallery_protocol} ({', '.join(map(str, self.gallery_images))} images)",
            f"flip: {self.flip}",
            f"re-ranking: {rerank}",
            counted(self.draws, "draw"),
            of_own if self.manifest_sha256 is None else f"manifest {self.manifest_sha256[:8]}",
        ]
        if self.trained_on is not None:
            known = f" (manifest {self.trained_on.manifest_sha256[:8]})" if self.trained_on.manifest_sha256 else ""
            with_others = (self.trained_on.dataset, self.trained_on.aspect) == (self.dataset, "all")
            data = "all four aspects" if with_others else str(self.trained_on)
            parts.append(f"{'' if with_others else 'cross-domain: '}trained on {data}{known}")
        return " · ".join(parts)
