"""For whom it works: Rank-1 and error rates for groups of people, where the data set says who belongs to which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from handclip.metrics.uncertainty import FEW_PEOPLE
from handclip.metrics.verification import OPERATING_FMR, ScoredPairs, fix_thresholds
from handclip.report.figures.groups import Group, GroupRates, groups_figure
from handclip.report.group_rates import RankingOutcomes, Rate, VerificationErrors
from handclip.report.prose import percent
from handclip.report.report_data import ReportData, ReportRun, why_not_searched
from handclip.report.report_writer import ReportWriter, Section, SectionWriter
from handclip.report.table import Column

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
_RATES = {"rank1": "Rank-1", "fnmr": "FNMR", "fmr": "FMR"}
_ORDER = ("very fair", "fair", "medium", "dark", *(name for _, name in _AGES), _OLDEST, "no", "yes")
_EVERYBODY = "everybody"


@dataclass(frozen=True, eq=False)
class _Group:
    """Queries that share a value of an attribute, on the aspects on which all values of it that are shown occur.

    Args:
        attribute: such as `gender`; empty for everybody on all aspects.
        value: such as `female`, or everybody on these aspects.
        aspects: which they are.
        chosen: (Q,) the queries.
        is_limited: whether there are other aspects.
        shown: whether there are enough people for rates.
    """

    attribute: str
    value: str
    aspects: Sequence[str]
    chosen: NDArray[np.bool_]
    is_limited: bool = False
    shown: bool = True


@dataclass(frozen=True, eq=False)
class _RunOutcomes:
    """How each query of a run fared, and its errors at a threshold; None where there is none.

    Args:
        run: the run.
        ranking: of all queries.
        rank1: that over everybody; None where the report is about another Rank-1, such as after re-ranking.
        threshold: fixed on validation images.
        aim: what it is to do there.
        errors: of verification.
    """

    run: ReportRun
    ranking: RankingOutcomes
    rank1: Rate | None
    threshold: float | None
    aim: str
    errors: VerificationErrors | None

    def rates(self, group: _Group) -> dict[str, Rate | None]:
        """Return all rates of a group; None where there are too few people."""
        if not group.shown:
            return dict.fromkeys(_RATES if self.errors is not None else ("rank1",))
        is_everybody = not group.attribute
        rates = {"rank1": self.rank1 if is_everybody and self.rank1 else self.ranking.rank1(group.chosen)}
        if self.errors is None:
            return {**rates}
        return {**rates, "fnmr": self.errors.fnmr(group.chosen), "fmr": self.errors.fmr(group.chosen)}


@dataclass(frozen=True, eq=False)
class _Row:
    """A run on a group, and on the people that the group is held against; None for everybody.

    `counts` are what the rates are of.
    """

    group: _Group
    everybody: "_Row | None"
    people: int
    images: int
    counts: Mapping[str, int]
    rates: Mapping[str, Rate | None]

    @property
    def name(self) -> str:
        return f"{_TITLES[self.group.attribute].lower()} {self.group.value}"


def groups_section(data: ReportData, writer: ReportWriter) -> Section:
    """Show the best run in detail, and the featured ones beside each other."""
    protocol = data.block.protocol
    page = writer.section(
        "groups", protocol=protocol, titles=_TITLES, few_people=FEW_PEOPLE, fewest_people=FEWEST_PEOPLE
    )
    if _is_lacking(data.best):
        page.words("lacking", run=data.best, reason=why_not_searched(data.best))
        return page.finished()
    assert data.best.attributes is not None
    is_plain = protocol.gallery_protocol == "gallery" and protocol.rerank is None
    best = _outcomes(data.best, is_plain, page)
    # All runs of a block have the same queries, so that what divides those of one divides those of all.
    divided = _divide(data.best.attributes, best.ranking)
    people = len(np.unique(best.ranking.people))
    if not divided or people < FEWEST_PEOPLE:
        page.words("undivided", divided=divided, people=people)
        return page.finished()
    others = [run for run in data.featured if run is not data.best and not _is_lacking(run)]
    every = [best, *(_outcomes(run, is_plain, page) for run in others)]
    tables = {one.run: _rows(one, divided) for one in every}
    page.csv("groups", [_plain(one, row) for one in every for row in tables[one.run]])
    own = tables[data.best]
    page.words(
        "introduction",
        best=best,
        is_plain=is_plain,
        limited={one.attribute: one.aspects for one in divided if one.is_limited},
        trained_on_validation=any(run.validation_was_trained_on for run in tables),
    )
    _detail(data.best, own, page)
    if others and any(row.rates["rank1"] is not None for row in _of_groups(own)):
        _side_by_side({run: tables[run] for run in sorted(tables, key=lambda run: run.row.number)}, page)
    _table(own, page)
    groups = _of_groups(own)
    page.words(
        "warnings",
        groups=len(groups),
        small=[row for row in groups if row.rates["rank1"] is not None and row.people < FEW_PEOPLE],
        hidden=[row for row in groups if row.rates["rank1"] is None],
    )
    return page.finished()


def _is_lacking(run: ReportRun) -> bool:
    """Whether nothing can be said of the groups of a run."""
    return not run.attributes or run.manifests is None or run.features is None


def _outcomes(run: ReportRun, is_plain: bool, page: SectionWriter) -> _RunOutcomes:
    searches, score = list(run.searches()), run.row.scores["rank1"]
    threshold, aim = _threshold(run, page)
    return _RunOutcomes(
        run,
        RankingOutcomes.of(searches),
        (score.mean, score.low, score.high) if is_plain else None,
        threshold,
        aim,
        VerificationErrors.of(searches, threshold) if threshold is not None else None,
    )


def _threshold(run: ReportRun, page: SectionWriter) -> tuple[float | None, str]:
    """Fix the threshold on validation images alone; where they are too few for the FMR, that of the EER."""
    try:
        fixed = fix_thresholds(ScoredPairs.of(run.validation_searches()))
    except ValueError:  # no comparisons
        return None, ""
    value = fixed.fmr[OPERATING_FMR]
    aim = page.prose.text("aim", fmr=OPERATING_FMR, reason=fixed.reasons[OPERATING_FMR] if value is None else "")
    return fixed.eer if value is None else value, aim


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
        shown, common = _comparable(values, outcomes)
        aspects = common or every_aspect
        on_these = np.isin(outcomes.aspects, aspects)
        limited = len(aspects) < len(every_aspect)
        if limited:
            groups.append(_Group(attribute, _EVERYBODY, aspects, on_these, limited))
        groups += [
            _Group(attribute, value, aspects, on_these & (values == value), limited, value in shown) for value in found
        ]
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


def _rows(one: _RunOutcomes, divided: Sequence[_Group]) -> list[_Row]:
    """Return the rows of one run: everybody, then each group."""
    outcomes = one.ranking
    every_aspect = tuple(dict.fromkeys(outcomes.aspects))
    everybody = _row(one, _Group("", _EVERYBODY, every_aspect, np.ones(len(outcomes.people), dtype=np.bool_)), None)
    rows = [everybody]
    references: dict[str, _Row] = {}
    for group in divided:
        if group.value == _EVERYBODY:
            references[group.attribute] = _row(one, group, None)
            rows.append(references[group.attribute])
        else:
            rows.append(_row(one, group, references.get(group.attribute, everybody)))
    return rows


def _row(one: _RunOutcomes, group: _Group, everybody: _Row | None) -> _Row:
    outcomes = one.ranking
    counts = {"searches": int(np.count_nonzero(group.chosen & outcomes.mated))}
    if one.errors is not None:
        counts |= dict(zip(("genuine", "impostor"), one.errors.comparisons(group.chosen), strict=True))
    people = len(np.unique(outcomes.people[group.chosen]))
    return _Row(group, everybody, people, len(set(outcomes.paths[group.chosen])), counts, one.rates(group))


def _of_groups(rows: Sequence[_Row]) -> list[_Row]:
    """Leave out the rows of everybody."""
    return [row for row in rows if row.everybody is not None]


def _plain(one: _RunOutcomes, row: _Row) -> dict[str, Any]:
    """Return a row as the file has it, with plain numbers."""
    plain: dict[str, Any] = {
        "run": one.run.row.run,
        "attribute": row.group.attribute,
        "group": row.group.value,
        "aspects": " ".join(row.group.aspects),
        "people": row.people,
        "images": row.images,
        **row.counts,
    }
    for name, rate in row.rates.items():
        plain |= dict(zip((name, f"{name}_low", f"{name}_high"), rate or (None, None, None), strict=True))
    return {**plain, "threshold": one.threshold}


def _detail(run: ReportRun, rows: Sequence[_Row], page: SectionWriter) -> None:
    panels = {name: [_rates(run, name, _of_groups(rows))] for name in _measurable(rows)}
    findings = [_finding(name, rows, page) for name in panels]
    page.picture("groups", _figure(_of_groups(rows), panels), run=run, findings=findings)


def _side_by_side(tables: Mapping[ReportRun, Sequence[_Row]], page: SectionWriter) -> None:
    shown = {run: [row for row in _of_groups(rows) if row.rates["rank1"] is not None] for run, rows in tables.items()}
    names = [name for name in ("rank1", "fnmr") if all(name in _measurable(rows) for rows in shown.values())]
    panels = {name: [_rates(run, name, rows) for run, rows in shown.items()] for name in names}
    findings = [(run.label, _finding("rank1", rows, page)) for run, rows in tables.items()]
    page.picture("groups_of_runs", _figure(next(iter(shown.values())), panels), findings=findings)


def _measurable(rows: Sequence[_Row]) -> list[str]:
    """Return the rates that any group has."""
    return [name for name in _RATES if any(row.rates.get(name) for row in _of_groups(rows))] or ["rank1"]


def _figure(rows: Sequence[_Row], panels: Mapping[str, Sequence[GroupRates]]) -> Figure:
    titles = {
        row.group.attribute: _TITLES[row.group.attribute]
        + (f" ({', '.join(row.group.aspects)})" if row.group.is_limited else "")
        for row in rows
    }
    groups = [Group(titles[row.group.attribute], row.group.value, row.people, row.images) for row in rows]
    return groups_figure(groups, {f"{_RATES[name]} (%)": rates for name, rates in panels.items()})


def _rates(run: ReportRun, name: str, rows: Sequence[_Row]) -> GroupRates:
    everybody = [row.everybody.rates[name] if row.everybody else None for row in rows]
    own, reference = (
        np.array([rate or (np.nan, np.nan, np.nan) for rate in rates])
        for rates in ([row.rates[name] for row in rows], everybody)
    )
    return GroupRates(run.label, run.style or 0, own, reference[:, 0])


def _finding(name: str, rows: Sequence[_Row], page: SectionWriter) -> str:
    """Say the rate over everybody, and between which groups it lies."""
    known = sorted((rate[0], place) for place, row in enumerate(rows) if row.everybody and (rate := row.rates[name]))
    ends = [page.prose.text("end", rate=rate, row=rows[place]) for rate, place in (*known[:1], *known[-1:])]
    return page.prose.text("finding", title=_RATES[name], overall=rows[0].rates[name], ends=ends)


def _table(rows: Sequence[_Row], page: SectionWriter) -> None:
    shown = [
        {
            "attribute": _TITLES.get(row.group.attribute, "All"),
            "group": row.group.value,
            "aspects": ", ".join(row.group.aspects) if row.group.is_limited else "all",
            "people": row.people,
            "images": row.images,
            **row.counts,
            **{name: _interval_text(name, row) for name in row.rates},
        }
        for row in rows
    ]
    counts = ("people", "images", *rows[0].counts)
    columns = [
        Column("attribute", "Attribute"),
        Column("group", "Group"),
        *([Column("aspects", "Aspects")] if any(row.group.is_limited for row in rows) else []),
        *(Column(key, key.capitalize(), "{:,}".format, numeric=True) for key in counts),
        *(Column(name, f"{_RATES[name]} (%)", numeric=True) for name in rows[0].rates),
    ]
    page.table("groups", columns, shown, page.writer.folder / "tables" / "groups.csv")


def _interval_text(name: str, row: _Row) -> str:
    if (rate := row.rates[name]) is None:
        return "too few people" if name == "rank1" or row.rates["rank1"] is None else "not measurable"
    return "{} [{}, {}]".format(*map(percent, rate))
