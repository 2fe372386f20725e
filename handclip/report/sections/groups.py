"""For whom it works: Rank-1 and error rates for groups of people, where the data set says who belongs to which."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handclip.metrics.uncertainty import PersonSums, bca_interval, bounds_without_exception, resampling_weights
from handclip.metrics.verification import FMRS, ScoredPairs, fix_thresholds
from handclip.report.book import Block, Book, Column, Note, Section, Table, Text, percent
from handclip.report.figures.groups import FEW_PEOPLE, Group, GroupRates, groups_figure
from handclip.report.material import Material, ReportRun, Search

FEWEST_PEOPLE = 5
"""Of fewer people nothing is shown: a rate would be about them, and not about a group."""

_FMR = FMRS[0]
_REPLICATES = 2_000
_AGES = ((20, "under 20"), (30, "20 to 29"), (40, "30 to 39"), (50, "40 to 49"))
_OLDEST = "50 and over"
_TITLES = {
    "skin_colour": "Skin colour",
    "gender": "Gender",
    "age": "Age",
    "nail_polish": "Nail polish",
    "irregularities": "Irregularities",
}
_SHORT = {"rank1": "Rank-1", "fnmr": "FNMR", "fmr": "FMR"}
_AXES = {name: f"{title} (%)" for name, title in _SHORT.items()}
_ORDER = ("very fair", "fair", "medium", "dark", *(name for _, name in _AGES), _OLDEST, "no", "yes")

_INTRODUCTION = (
    "The mean over everybody hides whom a system fails. Here the searches are divided by what the data set says of the "
    "person and the hand on the query. Rank-1 is the share of searches in which the right person comes first; FNMR is "
    "the share of comparisons of two photographs of one person that are refused, FMR that of comparisons of two people "
    "that are accepted, at one threshold for everybody."
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Threshold:
    """A threshold that was fixed on validation images, and what it is to do there."""

    value: float
    aim: str


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """Every query of every draw and aspect.

    Args:
        paths: (Q,) image of each query.
        people: (Q,) whom it shows.
        columns: (Q,) number of its draw of its aspect.
        counted: for each rate the (Q,) comparisons that count for it, and (Q,) all that could.
    """

    paths: NDArray[np.object_]
    people: NDArray[np.int64]
    columns: NDArray[np.int64]
    counted: Mapping[str, tuple[Floats, Floats]]

    @classmethod
    def of(cls, searches: Iterable[Search], threshold: _Threshold | None) -> "_Outcomes":
        paths: list[str] = []
        people, columns = [], []
        counted: dict[str, list[tuple[Any, Any]]] = {}
        for column, search in enumerate(searches):
            paths += [image.path for image in search.query]
            people.append(search.query_people)
            columns.append(np.full(len(search.query), column))
            own = search.query_people[:, None] == search.gallery_people
            nearest_own = np.where(own, search.scores, -np.inf).max(axis=1)
            nearest_other = np.where(own, -np.inf, search.scores).max(axis=1)
            # A tie counts against the model, as it does in every other ranking.
            counted.setdefault("rank1", []).append((nearest_own > nearest_other, own.any(axis=1)))
            if threshold is not None:
                accepted = search.scores >= threshold.value
                counted.setdefault("fnmr", []).append(((own & ~accepted).sum(axis=1), own.sum(axis=1)))
                counted.setdefault("fmr", []).append(((accepted & ~own).sum(axis=1), (~own).sum(axis=1)))
        joined = {
            name: (np.concatenate([part for part, _ in parts]), np.concatenate([whole for _, whole in parts]))
            for name, parts in counted.items()
        }
        return cls(
            np.array(paths, dtype=object),
            np.concatenate(people),
            np.concatenate(columns),
            {name: (part.astype(np.float64), whole.astype(np.float64)) for name, (part, whole) in joined.items()},
        )

    def rate(self, name: str, chosen: NDArray[np.bool_]) -> tuple[float, float, float] | None:
        """Return a rate over some queries with its interval over people; None where it cannot be measured."""
        part, whole = (values[chosen] for values in self.counted[name])
        there = whole > 0
        persons, rows = np.unique(self.people[chosen][there], return_inverse=True)
        draws, columns = np.unique(self.columns[chosen][there], return_inverse=True)
        if len(persons) < FEWEST_PEOPLE:
            return None
        sums, counts = np.zeros((len(persons), len(draws), 1)), np.zeros((len(persons), len(draws)))
        np.add.at(sums[..., 0], (rows, columns), part[there])
        np.add.at(counts, (rows, columns), whole[there])
        table = PersonSums(sums, counts)
        resampled = table.resampled(_weights(len(persons)))
        ends = bca_interval(table.means, resampled, table.leave_one_out)
        low, high = bounds_without_exception(table, *ends)
        return float(table.means[0]), float(low[0]), float(high[0])


@lru_cache(maxsize=2)
def _weights(people: int) -> Floats:
    return resampling_weights(people, _REPLICATES)


@dataclass(frozen=True, eq=False)
class _Measured:
    """A run's outcomes and the threshold of its error rates; None where there is none."""

    run: ReportRun
    outcomes: _Outcomes
    threshold: _Threshold | None


def groups_section(material: Material, book: Book) -> Section:
    """Show the best run in detail, and the featured ones beside each other."""
    return Section(
        anchor="groups",
        title="For whom it works",
        question="Does the system serve everybody alike?",
        blocks=_blocks(material, book),
    )


def _blocks(material: Material, book: Book) -> list[Block]:
    if lacking := _what_is_lacking(material.best):
        return [Note(lacking, "missing")]
    assert material.best.attributes is not None
    best = _measure(material.best)
    # All runs of a block have the same queries, so that what divides those of one divides those of all.
    divided = _divide(material.best.attributes, best.outcomes)
    people = len(np.unique(best.outcomes.people))
    if not divided or people < FEWEST_PEOPLE:
        reason = (
            f"{people} people were tested, too few to be divided into groups"
            if divided
            else "what the data set says of the people on the test images is the same of all"
        )
        return [Note(f"Nothing can be said of groups: {reason}.", "missing")]
    others = [run for run in material.featured if run is not material.best and not _what_is_lacking(run)]
    tables = {one.run.row.run: _rows(one, divided) for one in (best, *map(_measure, others))}
    book.csv("groups", [row for rows in tables.values() for row in rows])
    own = tables[material.best.row.run]
    blocks: list[Block] = [Text(_INTRODUCTION), _threshold_block(best)]
    if best.threshold is not None and any(run.validation_was_trained_on for run in (material.best, *others)):
        blocks.append(
            Note(
                "Some runs were trained on the validation images too, and know the images that their threshold is set "
                "on: on test images their FMR can be higher than aimed at, or their FNMR."
            )
        )
    blocks.append(_detail(book, material.best, own))
    if others and any(row["people"] >= FEWEST_PEOPLE for row in own[1:]):
        blocks.append(_side_by_side(book, sorted((material.best, *others), key=lambda run: run.row.number), tables))
    return [*blocks, _table(book, own), *_warnings(own)]


def _what_is_lacking(run: ReportRun) -> str:
    """Return why nothing can be said of a run; empty where something can."""
    again = "handclip evaluate CONFIG --overwrite"
    if run.attributes is None:
        return f"What the data set says of its people was not kept ({run.missing['attributes']}: {again})."
    if not run.attributes:
        return (
            f"The data set {run.evaluated.metrics.dataset} says nothing of the people on its images. 11k Hands does, "
            "and so does a data set in its layout whose HandInfo.csv has the columns age, gender, skinColor, "
            "nailPolish or irregularities."
        )
    if run.manifests is None or run.features is None:
        reason = run.missing.get("manifests") or run.missing.get("features")
        return f"The features of {run.label} were not kept ({reason}: {again})."
    return ""


def _measure(run: ReportRun) -> _Measured:
    threshold = _threshold(run)
    return _Measured(run, _Outcomes.of(run.searches(), threshold), threshold)


def _threshold(run: ReportRun) -> _Threshold | None:
    """Fix the threshold on validation images alone; where they are too few for the FMR, that of the EER."""
    try:
        fixed = fix_thresholds(ScoredPairs.of(run.validation_searches()))
    except ValueError:  # no comparisons
        return None
    value = fixed.fmr[_FMR]
    if value is not None:
        return _Threshold(value, f"the lowest at which at most {100 * _FMR:g} % of impostors are accepted")
    return _Threshold(
        fixed.eer, f"at which FMR and FNMR are equal ({fixed.reasons[_FMR]}, so that a lower FMR cannot be aimed at)"
    )


def _divide(
    attributes: Mapping[str, Mapping[str, str]], outcomes: _Outcomes
) -> dict[tuple[str, str], NDArray[np.bool_]]:
    """Return which queries belong to each value of each attribute that has at least two."""
    divided = {}
    for attribute in _TITLES:
        values = np.array([_value(attribute, attributes.get(path, {})) for path in outcomes.paths], dtype=object)
        found = sorted({value for value in values if value}, key=_order)
        if len(found) > 1:
            divided.update({(attribute, value): values == value for value in found})
    return divided


def _value(attribute: str, known: Mapping[str, str]) -> str:
    text = known.get(attribute, "")
    if attribute != "age":
        return text
    if not text.isdecimal():
        return ""
    return next((name for below, name in _AGES if int(text) < below), _OLDEST)


def _order(value: str) -> tuple[int, str]:
    return (_ORDER.index(value) if value in _ORDER else len(_ORDER), value)


def _rows(measured: _Measured, divided: Mapping[tuple[str, str], NDArray[np.bool_]]) -> list[dict[str, Any]]:
    """Return the rows of the table of one run: everybody, then each group."""
    outcomes = measured.outcomes
    everybody = np.ones(len(outcomes.people), dtype=np.bool_)
    rows = []
    for (attribute, value), chosen in {("everybody", ""): everybody, **divided}.items():
        row: dict[str, Any] = {
            "run": measured.run.row.run,
            "attribute": attribute,
            "group": value,
            "people": len(np.unique(outcomes.people[chosen])),
            "images": len(set(outcomes.paths[chosen])),
            "searches": int(np.count_nonzero(chosen)),
        }
        for name in outcomes.counted:
            found = outcomes.rate(name, chosen) or (None, None, None)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
        rows.append({**row, "threshold": measured.threshold.value if measured.threshold else None})
    return rows


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


def _detail(book: Book, run: ReportRun, rows: Sequence[Mapping[str, Any]]) -> Block:
    panels = [(_AXES[name], [_rates(run, name, rows)]) for name in _AXES if name in rows[0]]
    return book.picture(
        "groups",
        groups_figure(_groups(rows), panels),
        alt=f"{run.label} by group. {' '.join(_finding(name, rows) for name in _AXES if name in rows[0])}",
        caption=(
            f"{run.label} by group of the person on the query, with 95 % intervals over people. The dashed line is the "
            f"rate over everybody. Hollow marks stand for groups of fewer than {FEW_PEOPLE} people, whose intervals "
            f"are too short; groups of fewer than {FEWEST_PEOPLE} are not shown."
        ),
    )


def _side_by_side(book: Book, runs: Sequence[ReportRun], tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> Block:
    shown = {name: [row for row in rows if row["people"] >= FEWEST_PEOPLE] for name, rows in tables.items()}
    first = shown[runs[0].row.run]
    names = [name for name in ("rank1", "fnmr") if name in first[0]]
    panels = [(_AXES[name], [_rates(run, name, shown[run.row.run]) for run in runs]) for name in names]
    ends = [f"{run.label}: {_finding('rank1', tables[run.row.run])}" for run in runs]
    return book.picture(
        "groups_of_runs",
        groups_figure(_groups(first), panels),
        alt=f"Several runs by group. {' '.join(ends)}",
        caption=(
            "The same groups in several runs. Where all of them fail the same group, look at its photographs and at "
            "how few of its people were trained on; where one does, at that run. Lines stand at each run's rate over "
            "everybody. Each run's threshold is its own; groups that are not shown above are left out."
        ),
    )


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    return [Group(_TITLES[row["attribute"]], row["group"], row["people"], row["images"]) for row in rows[1:]]


def _rates(run: ReportRun, name: str, rows: Sequence[Mapping[str, Any]]) -> GroupRates:
    rates, low, high = (
        np.array([row[key] for row in rows[1:]], dtype=np.float64) for key in (name, f"{name}_low", f"{name}_high")
    )
    return GroupRates(run.label, run.style or 0, rates, low, high, overall=rows[0][name])


def _finding(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Say the rate over everybody, and between which groups it lies."""
    known = sorted((row for row in rows[1:] if row[name] is not None), key=lambda row: row[name])
    text = f"{_SHORT[name]} is {percent(rows[0][name])} % over everybody"
    if not known:
        return f"{text}."
    lowest, highest = (f"{percent(row[name])} % ({_group_name(row)})" for row in (known[0], known[-1]))
    return f"{text}, and from {lowest} to {highest} by group."


def _group_name(row: Mapping[str, Any]) -> str:
    return f"{_TITLES[row['attribute']].lower()} {row['group']}"


def _table(book: Book, rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = [
        {
            "attribute": _TITLES.get(row["attribute"], "Everybody"),
            **{key: row[key] for key in ("group", "people", "images", "searches")},
            **{name: _interval_text(name, row) for name in _AXES if name in row},
        }
        for row in rows
    ]
    columns = [
        Column("attribute", "Attribute"),
        Column("group", "Group"),
        *(Column(key, key.capitalize(), "{:,}".format, numeric=True) for key in ("people", "images", "searches")),
        *(Column(name, f"{_SHORT[name]} (%)", numeric=True) for name in _AXES if name in rows[0]),
    ]
    caption = (
        "Percent, with the 95 % interval over people. Images are the different photographs that were searched for, "
        "searches count them once for each draw."
    )
    return book.table("groups_of_best_run", columns, shown, caption)


def _interval_text(name: str, row: Mapping[str, Any]) -> str:
    if row[name] is None:
        return "too few people"
    return f"{percent(row[name])} [{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]"


def _warnings(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    groups = rows[1:]
    small = [row for row in groups if FEWEST_PEOPLE <= row["people"] < FEW_PEOPLE]
    hidden = [row for row in groups if row["people"] < FEWEST_PEOPLE]
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
            parts.append(f"Fewer than {FEWEST_PEOPLE} people, therefore without a rate: {names}.")
        blocks.append(Note(" ".join(parts)))
    blocks.append(
        Text(
            f"{len(groups)} groups are compared, and of so many some differ by chance: one interval in twenty misses "
            "the truth. A small difference is no proof of bias, nor is its absence a proof of fairness: groups differ "
            "in other ways too, such as age, gender, nail polish and how many of their people were trained on."
        )
    )
    return blocks
