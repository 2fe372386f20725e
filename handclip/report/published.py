"""Results that others have published, each with the protocol it was measured by and its source."""

from collections.abc import Mapping
from dataclasses import dataclass
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
        scores: all five metrics, `converted` among them.
        converted: the metric that was not published but follows from mAP trapezoid = (Rank-1 + mAP) / 2, which is
            exact where every query has one relevant gallery image, as in 11k Hands and HD.
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
    scores: Mapping[str, float | None]
    converted: str | None


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """Return every published result, in the order of `published.yml`."""
    text = files("handclip.report").joinpath("published.yml").read_text(encoding="utf-8")
    content = load_yaml(text)
    return tuple(
        _result(group, row, data, *content["whole_data_sets"][f"{data} {group['gallery_protocol']}"])
        for group in content["groups"]
        for row in group["rows"]
        for data in row["results"]
    )


def _result(
    group: Mapping[str, Any], row: Mapping[str, Any], data: str, gallery_images: int, queries: int
) -> PublishedResult:
    dataset, aspect = data.split()
    percents = row["results"][data] or [None] * 4
    *ranks, average_precision = (None if value is None else round(value / 100, _DECIMALS) for value in percents)
    plain, trapezoid, converted = _conventions(group["ap_convention"], ranks[0], average_precision)
    found: dict[str, float | None] = dict(zip(("rank1", "rank5", "rank10"), ranks, strict=True))
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
        **found,
        average_precision=average_precision,
        trained_on=tuple(trained_on.split()) if trained_on else None,
        source=row.get("source", group["source"]),
        note=" ".join(note for note in (group.get("note"), row.get("note")) if note),
        scores={**found, "map": plain, "map_trapezoid": trapezoid},
        converted=converted,
    )


def _conventions(
    convention: str, rank1: float | None, published: float | None
) -> tuple[float | None, float | None, str | None]:
    """Return mAP and mAP trapezoid, one of which was published, and the name of the other where it can be converted."""
    plain, trapezoid = (None, published) if convention == "trapezoid" else (published, None)
    if rank1 is None or published is None:
        return plain, trapezoid, None
    if convention == "trapezoid":
        return round(2 * published - rank1, _DECIMALS), published, "map"
    return published, round((rank1 + published) / 2, _DECIMALS), "map_trapezoid"
