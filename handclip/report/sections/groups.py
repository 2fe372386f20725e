"""For whom it works: Rank-1 and error rates for groups of people, where the data set says who belongs to which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handclip.metrics.uncertainty import (
    FEW_PEOPLE,
)
from handclip.metrics.verification import (
    OPERATING_FMR,
    ScoredPairs,
    fix_thresholds,
)
from handclip.report.figures.groups import Group, GroupRates, groups_figure
from handclip.report.group_rates import RankingOutcomes, Rate, VerificationErrors
from handclip.report.report_data import ReportData, ReportRun, why_not_searched
from handclip.report.report_writer import Block, Column, Note, ReportWriter, Section, Table, Text, make_table, percent

FEWEST_PEOPLE = 5
"""Of fewer people nothing is shown: a rate would be about them, and not about a group."""

_AGES = ((20, "under 20"), (30, "20 to 29"), (40, "30 to 39"), (50, "40 to 49"))
_OLDEST = "50 and over"
_TITLES = {
    "skin_colour": "Skin colour",
    "gender": "Gender",
    "age": "Age",
    "nail_polish": "Nail polish",
    "irregularities": "Irregularities",
}
_COUNTED = ("searches", "genuine", "impostor")
"""What the three rates are of."""
_SHORT = {"rank1": "Rank-1", "fnmr": "FNMR", "fmr": "FMR"}
_AXES = {name: f"{title} (%)" for name, title in _SHORT.items()}
_ORDER = ("very fair", "fair", "medium", "dark", *(name for _, name in _AGES), _OLDEST, "no", "yes")

_EVERYBODY = "everybody"

_INTRODUCTION = (
    "The mean over everybody hides whom a system fails. Here the searches are divided by what the data set says of the "
    "person and the hand on the query. Rank-1 is the share of searches in which the right person comes first, averaged "
    "over the queries of each draw and aspect, and then over draws and aspects. FNMR is the share of comparisons of "
    "two photographs of one person that are refused, FMR that of comparisons of two people that are accepted, over all "
    "draws and aspects together, at one threshold for everybody."
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Threshold:
    """A threshold that was fixed on validation images, and what it is to do there."""

    value: float
    aim: str


@dataclass(frozen=True, eq=False)
class _Group:
    """Queries that share a value of an attribute, on the aspects on which all values of it that are shown occur.

    Args:
        attribute: such as `gender`; empty for everybody on all aspects.
        value: such as `female`, or everybody on these aspects.
        aspects: which they are; empty for all.
        chosen: (Q,) the queries.
        shown: whether there are enough people for rates.
    """

    attribute: str
    value: str
    aspects: tuple[str, ...]
    chosen: NDArray[np.bool_]
    shown: bool = True

    @property
    def is_reference(self) -> bool:
        """Whether it is everybody."""
        return self.value == _EVERYBODY


@dataclass(frozen=True, eq=False)
class _Measured:
    """A run's outcomes, and its errors at a threshold; None where there is none.

    `rank1` is that over everybody, and None where the report is about another Rank-1, such as after re-ranking.
    """

    run: ReportRun
    outcomes: RankingOutcomes
    rank1: Rate | None
    threshold: _Threshold | None
    errors: VerificationErrors | None

    def rates(self, group: _Group) -> dict[str, Rate | None]:
        """Return all rates of a group."""
        is_everybody = not group.attribute
        rates: dict[str, Rate | None] = {
            "rank1": self.rank1 if is_everybody and self.rank1 else self.outcomes.rank1(group.chosen)
        }
        if self.errors is not None:
            rates |= {"fnmr": self.errors.fnmr(group.chosen), "fmr": self.errors.fmr(group.chosen)}
        return rates


def groups_section(data: ReportData, writer: ReportWriter) -> Section:
    """Show the best run in detail, and the featured ones beside each other."""
    return Section(
        anchor="groups",
        title="For whom it works",
        question="Does the system serve everybody alike?",
        blocks=_blocks(data, writer),
    )


def _blocks(data: ReportData, writer: ReportWriter) -> list[Block]:
    if lacking := _what_is_lacking(data.best):
        return [Note(lacking, "missing")]
    assert data.best.attributes is not None
    protocol = data.block.protocol
    is_plain = protocol.gallery_protocol == "gallery" and protocol.rerank is None
    best = _measure(data.best, is_plain)
    # All runs of a block have the same queries, so that what divides those of one divides those of all.
    divided = _divide(data.best.attributes, best.outcomes)
    people = len(np.unique(best.outcomes.people))
    if not divided or people < FEWEST_PEOPLE:
        reason = (
            f"{people} people were tested, too few to be divided into groups"
            if divided
            else "what the data set says of the people on the test images is the same of all"
        )
        return [Note(f"Nothing can be said of groups: {reason}.", "missing")]
    others = [run for run in data.featured if run is not data.best and not _what_is_lacking(run)]
    measured = [best, *(_measure(run, is_plain) for run in others)]
    tables = {one.run.row.run: _rows(one, divided) for one in measured}
    writer.csv("groups", [row for rows in tables.values() for row in rows])
    own = tables[data.best.row.run]
    blocks: list[Block] = [Text(_INTRODUCTION)]
    if not is_plain:
        blocks.append(
            Text(
                "Rank-1 is that in the plain gallery without re-ranking, from which error rates are measured too; "
                f"the verdict is about {protocol.label}, so its Rank-1 is another."
            )
        )
    if limited := {_TITLES[one.attribute]: one.aspects for one in divided if one.aspects}:
        parts = "; ".join(f"{title} on {', '.join(aspects)}" for title, aspects in limited.items())
        blocks.append(
            Text(
                "Some aspects are easier than others, and not every group is on all of them: nail polish, for one, is "
                "seen on backs of hands only. Groups are compared on the aspects on which each has "
                f"{FEWEST_PEOPLE} people or more, and held against everybody on these aspects: {parts}."
            )
        )
    blocks.append(_threshold_block(best))
    if best.threshold is not None and any(run.validation_was_trained_on for run in (data.best, *others)):
        blocks.append(
            Note(
                "Some runs were trained on the validation images too, and know the images that their threshold is set "
                "on: on test images their FMR can be higher than aimed at, or their FNMR."
            )
        )
    blocks.append(_detail(writer, data.best, own))
    if others and any(row["rank1"] is not None for row in _of_groups(own)):
        blocks.append(_side_by_side(writer, sorted((data.best, *others), key=lambda run: run.row.number), tables))
    return [*blocks, _table(writer, own), *_warnings(own)]


def _what_is_lacking(run: ReportRun) -> str:
    """Return why nothing can be said of a run; empty where something can."""
    if run.attributes is None:
        return f"What the data set says of its people cannot be shown: {run.missing['attributes']}."
    if not run.attributes:
        return (
            f"The data set {run.evaluated.metrics.dataset} says nothing of the people on its images. 11k Hands does, "
            "and so does a data set in its layout whose HandInfo.csv has the columns age, gender, skinColor, "
            "nailPolish or irregularities."
        )
    if run.manifests is None or run.features is None:
        return f"How groups fare with {run.label} cannot be shown: {why_not_searched(run)}."
    return ""


def _measure(run: ReportRun, is_plain: bool) -> _Measured:
    searches, threshold, score = list(run.searches()), _threshold(run), run.row.scores["rank1"]
    return _Measured(
        run,
        RankingOutcomes.of(searches),
        (score.mean, score.low, score.high) if is_plain else None,
        threshold,
        VerificationErrors.of(searches, threshold.value) if threshold is not None else None,
    )


def _threshold(run: ReportRun) -> _Threshold | None:
    """Fix the threshold on validation images alone; where they are too few for the FMR, that of the EER."""
    try:
        fixed = fix_thresholds(ScoredPairs.of(run.validation_searches()))
    except ValueError:  # no comparisons
        return None
    value = fixed.fmr[OPERATING_FMR]
    if value is not None:
        return _Threshold(value, f"the lowest at which at most {100 * OPERATING_FMR:g} % of impostors are accepted")
    return _Threshold(
        fixed.eer,
        f"at which FMR and FNMR are equal ({fixed.reasons[OPERATING_FMR]}, so that a lower FMR cannot be aimed at)",
    )


def _divide(attributes: Mapping[str, Mapping[str, str]], outcomes: RankingOutcomes) -> list[_Group]:
    """Return a group for each value of each attribute that has at least two.

    Where these are not on all aspects, everybody on those that are comes first.
    """
    groups = []
    every_aspect = tuple(dict.fromkeys(outcomes.aspects))
    for attribute in _TITLES:
        values = np.array([_value(attribute, attributes.get(path, {})) for path in outcomes.paths], dtype=object)
        found = sorted({value for value in values if value}, key=_order)
        if len(found) < 2:
            continue
        shown, aspects = _comparable(values, outcomes)
        on_these = np.isin(outcomes.aspects, aspects or every_aspect)
        limited = aspects if len(aspects) < len(every_aspect) else ()
        if limited:
            groups.append(_Group(attribute, _EVERYBODY, limited, on_these))
        groups += [_Group(attribute, value, limited, on_these & (values == value), value in shown) for value in found]
    return groups


def _comparable(values: NDArray[np.object_], outcomes: RankingOutcomes) -> tuple[list[str], tuple[str, ...]]:
    """Return values that all have `FEWEST_PEOPLE` on each of some aspects, and these aspects.

    Where all values share no aspect, those of the fewest people give way.
    """
    people = {
        value: {
            aspect: len(np.unique(outcomes.people[(values == value) & (outcomes.aspects == aspect) & outcomes.mated]))
            for aspect in dict.fromkeys(outcomes.aspects)
        }
        for value in {value for value in values if value}
    }
    shown = sorted(people, key=lambda value: (sum(people[value].values()), value))
    # A value that reaches the number nowhere must not decide for the others.
    shown = [value for value in shown if max(people[value].values()) >= FEWEST_PEOPLE]
    while shown:
        on_all = [aspect for aspect in people[shown[0]] if all(people[one][aspect] >= FEWEST_PEOPLE for one in shown)]
        if on_all:
            return shown, tuple(on_all)
        shown = shown[1:]
    return [], ()


def _value(attribute: str, known: Mapping[str, str]) -> str:
    text = known.get(attribute, "")
    if attribute != "age":
        return text
    if not text.isdecimal():
        return ""
    return next((name for below, name in _AGES if int(text) < below), _OLDEST)


def _order(value: str) -> tuple[int, str]:
    return (_ORDER.index(value) if value in _ORDER else len(_ORDER), value)


def _rows(measured: _Measured, divided: Sequence[_Group]) -> list[dict[str, Any]]:
    """Return the rows of the table of one run: everybody, then each group."""
    outcomes = measured.outcomes
    everybody = _Group("", _EVERYBODY, (), np.ones(len(outcomes.people), dtype=np.bool_))
    rows = []
    for group in (everybody, *divided):
        row: dict[str, Any] = {
            "run": measured.run.row.run,
            "attribute": group.attribute,
            "group": group.value,
            "aspects": " ".join(group.aspects or dict.fromkeys(outcomes.aspects)),
            "people": len(np.unique(outcomes.people[group.chosen])),
            "images": len(set(outcomes.paths[group.chosen])),
            "searches": int(np.count_nonzero(group.chosen & outcomes.mated)),
        }
        if measured.errors is not None:
            row |= dict(zip(("genuine", "impostor"), measured.errors.comparisons(group.chosen), strict=True))
        names = ["rank1"] if measured.errors is None else list(_SHORT)
        rates = measured.rates(group) if group.shown else dict.fromkeys(names)
        for name, rate in rates.items():
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), rate or (None, None, None), strict=True))
        rows.append({**row, "threshold": measured.threshold.value if measured.threshold else None})
    return rows


def _of_groups(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out the rows of everybody."""
    return [row for row in rows if row["group"] != _EVERYBODY]


def _references(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the row of everybody that the groups of each attribute are held against."""
    own = {row["attribute"]: row for row in rows if row["group"] == _EVERYBODY}
    return {row["attribute"]: own.get(row["attribute"], rows[0]) for row in _of_groups(rows)}


def _threshold_block(best: _Measured) -> Block:
    if best.threshold is None:
        return Note(
            "There are no validation images of people who were trained on, so no threshold can be set without looking "
            "at the test images, and FNMR and FMR are left out. Prepare the data with a validation split, and evaluate "
            "again.",
            "missing",
        )
    return Text(
        "The threshold of each run is set on its validation images and then applied to the test images: "
        f"{best.threshold.aim}. For {best.run.label} it is {best.threshold.value:.3f}. Comparisons are those of the "
        "protocol gallery."
    )


def _detail(writer: ReportWriter, run: ReportRun, rows: Sequence[Mapping[str, Any]]) -> Block:
    panels = [(_AXES[name], [_rates(run, name, rows)]) for name in _measurable(rows)]
    return writer.picture(
        "groups",
        groups_figure(_groups(rows), panels),
        alt=f"{run.label} by group. {' '.join(_finding(name, rows) for name in _measurable(rows))}",
        caption=(
            f"{run.label} by group of the person on the query, with 95 % intervals over people. Dashed lines "
            "are the rate over everybody on the same aspects. Hollow marks stand for groups of fewer than "
            f"{FEW_PEOPLE} people, whose intervals are too short; groups of fewer than {FEWEST_PEOPLE} are not shown."
        ),
    )


def _side_by_side(
    writer: ReportWriter, runs: Sequence[ReportRun], tables: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Block:
    shown = {run: [row for row in rows if row["rank1"] is not None] for run, rows in tables.items()}
    first = shown[runs[0].row.run]
    names = [name for name in ("rank1", "fnmr") if all(name in _measurable(rows) for rows in shown.values())]
    panels = [(_AXES[name], [_rates(run, name, shown[run.row.run]) for run in runs]) for name in names]
    ends = [f"{run.label}: {_finding('rank1', tables[run.row.run])}" for run in runs]
    return writer.picture(
        "groups_of_runs",
        groups_figure(_groups(first), panels),
        alt=f"Several runs by group. {' '.join(ends)}",
        caption=(
            "The same groups in several runs. Where all of them fail the same group, look at its photographs and at "
            "how few of its people were trained on; where one does, at that run. Lines stand at each run's rate over "
            "everybody on the same aspects. Each run's threshold is its own; groups that are not shown above are left "
            "out."
        ),
    )


def _measurable(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rates that any group has."""
    return [name for name in _AXES if any(row.get(name) is not None for row in _of_groups(rows))] or ["rank1"]


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    references = _references(rows)
    titles = {
        attribute: _TITLES[attribute] + ("" if row is rows[0] else f" ({', '.join(row['aspects'].split())})")
        for attribute, row in references.items()
    }
    return [Group(titles[row["attribute"]], row["group"], row["people"], row["images"]) for row in _of_groups(rows)]


def _rates(run: ReportRun, name: str, rows: Sequence[Mapping[str, Any]]) -> GroupRates:
    groups, references = _of_groups(rows), _references(rows)
    rates, low, high = (
        np.array([row[key] for row in groups], dtype=np.float64) for key in (name, f"{name}_low", f"{name}_high")
    )
    everybody = np.array([references[row["attribute"]][name] for row in groups], dtype=np.float64)
    return GroupRates(run.label, run.style or 0, rates, low, high, everybody)


def _finding(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Say the rate over everybody, and between which groups it lies."""
    known = sorted((row for row in _of_groups(rows) if row[name] is not None), key=lambda row: row[name])
    overall = "cannot be measured" if rows[0][name] is None else f"is {percent(rows[0][name])} %"
    text = f"{_SHORT[name]} {overall} over everybody"
    if not known:
        return f"{text}."
    references = _references(rows)
    ends = []
    for row in (known[0], known[-1]):
        where = "" if references[row["attribute"]] is rows[0] else f" on {', '.join(row['aspects'].split())}"
        ends.append(f"{percent(row[name])} % ({_group_name(row)}{where})")
    return f"{text}, and from {ends[0]} to {ends[1]} by group."


def _group_name(row: Mapping[str, Any]) -> str:
    return f"{_TITLES[row['attribute']].lower()} {row['group']}"


def _table(writer: ReportWriter, rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = [
        {
            "attribute": _TITLES.get(row["attribute"], "All"),
            "aspects": "all" if row["aspects"] == rows[0]["aspects"] else ", ".join(row["aspects"].split()),
            **{key: row[key] for key in ("group", "people", "images", *_COUNTED) if key in row},
            **{name: _interval_text(name, row) for name in _AXES if name in row},
        }
        for row in rows
    ]
    columns = [
        Column("attribute", "Attribute"),
        Column("group", "Group"),
        *([Column("aspects", "Aspects")] if any(row["aspects"] != "all" for row in shown) else []),
        *(
            Column(key, key.capitalize(), "{:,}".format, numeric=True)
            for key in ("people", "images", *_COUNTED)
            if key in rows[0]
        ),
        *(Column(name, f"{_SHORT[name]} (%)", numeric=True) for name in _AXES if name in rows[0]),
    ]
    caption = (
        "Percent, with the 95 % interval over people. Images are the different photographs that were searched for, "
        "searches count them once for each draw, if the person is in the gallery. Rank-1 is of the searches, FNMR of "
        "the genuine and FMR of the impostor comparisons. As for everybody, FNMR needs ten people, and FMR as many "
        "pairs of people that thirty of them can be expected to be accepted."
    )
    return make_table(columns, shown, caption, writer.folder / "tables" / "groups.csv")


def _interval_text(name: str, row: Mapping[str, Any]) -> str:
    if row[name] is None:
        return "too few people" if name == "rank1" or row["rank1"] is None else "not measurable"
    return f"{percent(row[name])} [{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]"


def _warnings(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    groups = _of_groups(rows)
    small = [row for row in groups if row["rank1"] is not None and row["people"] < FEW_PEOPLE]
    hidden = [row for row in groups if row["rank1"] is None]
    blocks: list[Block] = []
    if small or hidden:
        parts = []
        if small:
            names = ", ".join(f"{_group_name(row)} ({row['people']})" for row in small)
            parts.append(
                f"Fewer than {FEW_PEOPLE} people: {names}. Their intervals are too short, and a few people decide."
            )
        if hidden:
            names = ", ".join(f"{_group_name(row)} ({row['people']})" for row in hidden)
            parts.append(f"Fewer than {FEWEST_PEOPLE} people on an aspect, therefore without a rate: {names}.")
        blocks.append(Note(" ".join(parts)))
    blocks.append(
        Text(
            f"{len(groups)} groups are compared, and of so many some differ by chance: at least one interval in twenty "
            "misses the truth, and more in small groups. A small difference is no proof of bias, nor is its absence a "
            "proof of fairness: groups differ in other ways too, such as age, gender, nail polish and how many of "
            "their people were trained on."
        )
    )
    return blocks
