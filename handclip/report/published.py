"""Results that others have published, each with the protocol it was measured by and its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from handclip.config.yaml_text import load_yaml
from handclip.report.protocol import Protocol
from handclip.report.runs import TrainedOn
from handclip.retrieval.summary import METRICS

DRAWS = 10
"""Over which every published number is a mean."""

_DECIMALS = 6
"""Percent with two decimals, halved or doubled, is exact to this; what is beyond is rounding of binary fractions."""


@dataclass(frozen=True)
class PublishedResult:
    """One published row of one data set and aspect; metrics are fractions, None where not published.

    Args:
        method: name, and which version of it.
        protocol: how it was measured.
        queries: of each draw.
        ap_convention: `plain` or `trapezoid`, the one that average precision was published in.
        scores: all five metrics, `converted` among them.
        converted: the metric that was not published but follows from mAP trapezoid = (Rank-1 + mAP) / 2, which is
            exact where every query has one relevant gallery image, as in 11k Hands and HD.
        source: where it was published.
        note: what to know before citing it.
    """

    method: str
    protocol: Protocol
    queries: int
    ap_convention: str
    scores: Mapping[str, float | None]
    converted: str | None
    source: str
    note: str

    @property
    def average_precision(self) -> float | None:
        """The mAP in the convention that it was published in."""
        return self.scores["map" if self.ap_convention == "plain" else "map_trapezoid"]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        protocol, trained_on = self.protocol, self.protocol.trained_on
        return {
            "method": self.method,
            "dataset": protocol.dataset,
            "aspect": protocol.aspect,
            "gallery_protocol": protocol.gallery_protocol,
            "gallery_images": protocol.gallery_images[0],
            "queries": self.queries,
            "flip": protocol.flip,
            "ap_convention": self.ap_convention,
            **{name: self.scores[name] for name in ("rank1", "rank5", "rank10")},
            "average_precision": self.average_precision,
            "trained_on": (trained_on.dataset, trained_on.aspect) if trained_on is not None else None,
            "source": self.source,
            "note": self.note,
            "scores": self.scores,
            "converted": self.converted,
        }


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
    return PublishedResult(
        method=row["method"],
        protocol=Protocol(
            dataset=dataset,
            aspect=aspect,
            manifest_sha256=None,
            gallery_protocol=group["gallery_protocol"],
            gallery_images=(gallery_images,),
            flip=group["flip"],
            rerank=None,
            draws=DRAWS,
            trained_on=TrainedOn(*group["trained_on"].split()) if "trained_on" in group else None,
        ),
        queries=queries,
        ap_convention=group["ap_convention"],
        scores=dict(zip(METRICS, (*ranks, plain, trapezoid), strict=True)),
        converted=converted,
        source=row.get("source", group["source"]),
        note=" ".join(note for note in (group.get("note"), row.get("note")) if note),
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
