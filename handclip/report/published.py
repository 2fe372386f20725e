"""Results that others have published, each with the protocol it was measured by and its source."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from handclip.config.yaml_text import load_yaml

_DECIMALS = 6
"""Percent with two decimals, halved or doubled, is exact to this; what is beyond is rounding of binary fractions."""


@dataclass(frozen=True)
class PublishedResult:
    """One published row of one data set and aspect; metrics are fractions, None where not published.

    Args:
        method: name, and which version of it.
        dataset: data set of the test images.
        aspect: aspect of the hand.
        gallery_protocol: `gallery` or `gallery_all`.
        gallery_images: size of the gallery.
        queries: of each draw.
        flip: `none` or `sum`.
        ap_convention: `plain` or `trapezoid`, the one that `average_precision` was published in.
        rank1: Rank-1.
        rank5: Rank-5.
        rank10: Rank-10.
        average_precision: mAP in that convention.
        trained_on: data set and aspect, where they are not those of the test images.
        source: where it was published.
        note: what to know before citing it.
    """

    method: str
    dataset: str
    aspect: str
    gallery_protocol: str
    gallery_images: int
    queries: int
    flip: str
    ap_convention: str
    rank1: float | None
    rank5: float | None
    rank10: float | None
    average_precision: float | None
    trained_on: tuple[str, str] | None
    source: str
    note: str

    @property
    def scores(self) -> dict[str, float | None]:
        """All five metrics, `converted` among them."""
        plain = trapezoid = self.average_precision
        if self.ap_convention == "trapezoid":
            plain = self._converted_average_precision
        else:
            trapezoid = self._converted_average_precision
        return {
            "rank1": self.rank1,
            "rank5": self.rank5,
            "rank10": self.rank10,
            "map": plain,
            "map_trapezoid": trapezoid,
        }

    @property
    def converted(self) -> str | None:
        """The metric that was not published but follows from mAP trapezoid = (Rank-1 + mAP) / 2.

        The identity is exact where every query has one relevant gallery image, as in 11k Hands and HD.
        """
        if self._converted_average_precision is None:
            return None
        return "map" if self.ap_convention == "trapezoid" else "map_trapezoid"

    @property
    def _converted_average_precision(self) -> float | None:
        if self.rank1 is None or self.average_precision is None:
            return None
        if self.ap_convention == "trapezoid":
            return round(2 * self.average_precision - self.rank1, _DECIMALS)
        return round((self.rank1 + self.average_precision) / 2, _DECIMALS)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "scores": self.scores, "converted": self.converted}


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """Return every published result, in the order of `published.yml`."""
    text = files("handclip.report").joinpath("published.yml").read_text(encoding="utf-8")
    content = load_yaml(text)
    return tuple(
        _result(content, group, row, data)
        for group in content["groups"]
        for row in group["rows"]
        for data in row["results"]
    )


def _result(content: Mapping[str, Any], group: Mapping[str, Any], row: Mapping[str, Any], data: str) -> PublishedResult:
    dataset, aspect = data.split()
    gallery_images, queries = content["whole_data_sets"][f"{data} {group['gallery_protocol']}"]
    rank1, rank5, rank10, average_precision = map(_fraction, row["results"][data] or [None] * 4)
    trained_on = group.get("trained_on")
    return PublishedResult(
        method=row["method"],
        dataset=dataset,
        aspect=aspect,
        gallery_protocol=group["gallery_protocol"],
        gallery_images=gallery_images,
        queries=queries,
        flip=group["flip"],
        ap_convention=group["ap_convention"],
        rank1=rank1,
        rank5=rank5,
        rank10=rank10,
        average_precision=average_precision,
        trained_on=tuple(trained_on.split()) if trained_on else None,
        source=row.get("source", group["source"]),
        note=" ".join(note for note in (group.get("note"), row.get("note")) if note),
    )


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else round(percent / 100, _DECIMALS)
