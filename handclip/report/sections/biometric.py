"""As a biometric system: verification, open-set identification and calibration, in the terms of ISO/IEC 19795-1."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handclip.metrics.calibration import (
    FEW_PAIRS,
    Reliability,
    cllr,
    cosine_as_probability,
    fit_calibration,
    minimum_cllr,
    reliability,
    thinned,
)
from handclip.metrics.open_set import FPIRS, RULE_OF_3, OpenSet, OpenSetSearches, identify
from handclip.metrics.verification import (
    FEWEST_PEOPLE,
    FMRS,
    RULE_OF_30,
    ErrorTradeoff,
    FixedThresholds,
    RateEstimate,
    ScoredPairs,
    Verification,
    fix_thresholds,
    in_percent,
    verify,
)
from handclip.report.figures.verification import (
    ErrorCurve,
    ScoreDensities,
    error_tradeoff_figure,
    open_set_figure,
    reliability_figure,
    score_densities_figure,
)
from handclip.report.report_data import ReportData, ReportRun, why_not_searched
from handclip.report.report_writer import ReportWriter, Section, SectionWriter
from handclip.report.table import Column

Floats = NDArray[np.float64]

_BINS = 60
_LEFT_OUT = 0.02
"""Share of the lowest scores of either kind that density figures may cut off."""


@dataclass(frozen=True, eq=False)
class _Calibrated:
    """What the ratios of the test scores cost, and how often predictions come true, before and after calibration."""

    costs: Mapping[str, float]
    diagrams: Mapping[str, Reliability]


@dataclass(frozen=True, eq=False)
class _Judged:
    """What is shown of one run; `not_validated` says why nothing was fixed on validation scores, where it was not."""

    run: ReportRun
    verification: Verification
    densities: ScoreDensities
    open_set: OpenSet
    fixed: FixedThresholds | None
    calibrated: _Calibrated | None
    not_validated: str

    @property
    def named(self) -> dict[str, str]:
        return {"run": self.run.row.run, "label": self.run.label}

    @property
    def compared(self) -> dict[str, int]:
        """What the rates of verification are of: FNMR of the genuine comparisons, FMR of the impostor ones."""
        keys = ("genuine", "impostor", "people", "pairs_of_people")
        return {key: getattr(self.verification, key) for key in keys}

    @property
    def searched(self) -> dict[str, int]:
        """What the rates of identification are of: FNIR of the mated searches, FPIR of the non-mated ones."""
        return {key: getattr(self.open_set, key) for key in ("mated", "non_mated", "people")}


def biometric_section(data: ReportData, writer: ReportWriter) -> Section:
    """Measure the runs that figures show as biometric systems."""
    judged: dict[int, _Judged] = {}
    missing: dict[str, str] = {}
    # A featured run gets panels even where it is not among those that share curves.
    runs = {run.row.number: run for run in (*data.shown, *data.featured)}
    for number, run in sorted(runs.items()):
        one = _judge(run)
        if isinstance(one, _Judged):
            judged[number] = one
        else:
            missing[run.label] = one
    every = list(judged.values())
    best = judged.get(data.best.row.number, every[0] if every else None)
    page = writer.section(
        "biometric",
        protocol=data.block.protocol,
        best=best,
        judged=every,
        rate=_rate,
        rule_of_30=RULE_OF_30,
        rule_of_3=RULE_OF_3,
        fewest_people=FEWEST_PEOPLE,
        few_pairs=FEW_PAIRS,
    )
    if best is not None:
        panels = [judged[run.row.number] for run in data.featured if run.row.number in judged] or every[:1]
        page.words("introduction", pairs=best.verification, runs=len(judged))
        _scores(panels, page)
        _rates(every, best, page)
        _thresholds(every, page)
        _open_sets(every, best, page)
        _calibrations(every, panels, page)
    page.words("missing", missing=missing, reason=next(iter(missing.values()), ""))
    return page.finished()


def _judge(run: ReportRun) -> _Judged | str:
    """Return what is shown of a run, or why nothing can be."""
    searches = list(run.searches())
    if not searches:
        return _full_stop(why_not_searched(run) or "Its evaluation has kept no scores")
    try:
        pairs, open_set = ScoredPairs.of(searches), identify(OpenSetSearches.of(searches))
    except ValueError as error:
        return _full_stop(f"Its scores do not suffice: {error}")
    validation, not_validated = _validation_pairs(run)
    fixed = None if validation is None else fix_thresholds(validation)
    return _Judged(
        run=run,
        verification=verify(pairs, list(_criteria(fixed).values())),
        densities=_densities(run, pairs, fixed),
        open_set=open_set,
        fixed=fixed,
        calibrated=None if validation is None else _calibrate(validation, pairs),
        not_validated=not_validated,
    )


def _validation_pairs(run: ReportRun) -> tuple[ScoredPairs | None, str]:
    """Return the validation scores, or None and the reason."""
    searches = list(run.validation_searches())
    if not searches:
        return None, "the manifest has no validation photographs of people who also have training photographs"
    try:
        return ScoredPairs.of(searches), ""
    except ValueError as error:
        return None, f"the validation photographs of people who also have training photographs are too few ({error})"


def _criteria(fixed: FixedThresholds | None) -> dict[str, float]:
    """Return the thresholds that could be fixed, by what they are for."""
    if fixed is None:
        return {}
    by_fmr = {f"FMR {100 * fmr:g} %": threshold for fmr, threshold in fixed.fmr.items() if threshold is not None}
    return {"EER": fixed.eer, **by_fmr}


def _densities(run: ReportRun, pairs: ScoredPairs, fixed: FixedThresholds | None) -> ScoreDensities:
    """Return the densities of scores in bins; the lowest few are left out."""
    low = float(min(np.quantile(scores, _LEFT_OUT) for scores in pairs.rising))
    high = float(pairs.scores[-1])
    edges = np.linspace(low, high if high > low else low + 1e-3, _BINS + 1)
    impostor, genuine = (
        np.histogram(scores, edges)[0] / (len(scores) * (edges[1] - edges[0])) for scores in pairs.rising
    )
    return ScoreDensities(run.label, edges, genuine, impostor, None if fixed is None else fixed.eer)


def _calibrate(validation: ScoredPairs, test: ScoredPairs) -> _Calibrated:
    calibration = fit_calibration(validation.genuine, validation.impostor)
    # Ten million impostors would take a gigabyte, and say no more than a million of them.
    impostor = thinned(test.impostor)
    before = cosine_as_probability(test.genuine), cosine_as_probability(impostor)
    after = calibration.llr(test.genuine), calibration.llr(impostor)
    costs = {
        "cllr_before": cllr(*before),
        "cllr": cllr(*after),
        "cllr_min": minimum_cllr(test.genuine, impostor),
        "slope": calibration.slope,
        "offset": calibration.offset,
    }
    diagrams = {"calibrated": reliability(*after), "cosine read as a probability": reliability(*before)}
    return _Calibrated(costs, diagrams)


def _scores(panels: Sequence[_Judged], page: SectionWriter) -> None:
    page.words("scores")
    figure = score_densities_figure([one.densities for one in panels])
    page.picture("score_densities", figure, panels=len(panels), left_out=_LEFT_OUT)


def _rates(judged: Sequence[_Judged], best: _Judged, page: SectionWriter) -> None:
    curves, points, rows = [], [], []
    for one in judged:
        found = one.verification
        curves += _curve_of(one, found.curve, best)
        points += _curve_rows(one, found.curve, ("fmr", "fnmr"), one.compared)
        at_fmr = {_key("fnmr_at_fmr", fmr): found.fnmr_at_fmr[fmr] for fmr in FMRS}
        rows.append({**one.named, "eer": found.eer, **at_fmr, **one.compared})
    columns = [_rate_column("eer", "EER")]
    columns += [_rate_column(_key("fnmr_at_fmr", fmr), f"FNMR at FMR {100 * fmr:g} %") for fmr in FMRS]
    page.words("rates")
    page.csv("det_curves", points)
    page.picture("det_roc", error_tradeoff_figure(curves, best.verification.curve.lowest), curves=len(curves))
    _rates_table("verification", columns, rows, page)


def _thresholds(judged: Sequence[_Judged], page: SectionWriter) -> None:
    rows = [
        {**one.named, "fixed_for": criterion, "threshold": threshold, "fmr": fmr, "fnmr": fnmr, **one.compared}
        for one in judged
        for (criterion, threshold), (fmr, fnmr) in zip(
            _criteria(one.fixed).items(), one.verification.at_fixed, strict=True
        )
    ]
    columns = [
        Column("fixed_for", "Fixed for"),
        Column("threshold", "Threshold", "{:.6f}".format, numeric=True),
        _rate_column("fmr", "FMR on test"),
        _rate_column("fnmr", "FNMR on test"),
    ]
    fixed = [one for one in judged if one.fixed is not None]
    page.words("thresholds")
    if rows:
        people = {one.fixed.people for one in fixed if one.fixed}
        ends = sorted({min(people), max(people)})
        _rates_table("thresholds", columns, rows, page, first=judged[0].verification, people=ends)
    reasons = [reason for one in fixed if one.fixed for reason in one.fixed.reasons.values()]
    page.words("not_measurable", reasons=_distinct(reasons), where="in the validation split ")
    page.words("trained_on_validation", runs=[one.run for one in fixed if one.run.validation_was_trained_on])
    _not_validated(judged, "thresholds cannot be fixed beforehand", page)


def _open_sets(judged: Sequence[_Judged], best: _Judged, page: SectionWriter) -> None:
    curves, points, rows = [], [], []
    for one in judged:
        found = one.open_set
        curves += _curve_of(one, found.curve, best)
        points += _curve_rows(one, found.curve, ("fpir", "fnir"), one.searched)
        at_fpir = {_key("fnir_at_fpir", fpir): found.fnir_at_fpir[fpir] for fpir in FPIRS}
        rows.append({**one.named, "fnir_accepting_all": found.fnir_accepting_all, **at_fpir, **one.searched})
    columns = [_rate_column("fnir_accepting_all", "FNIR, every answer accepted")]
    columns += [_rate_column(_key("fnir_at_fpir", fpir), f"FNIR at FPIR {100 * fpir:g} %") for fpir in FPIRS]
    page.words("open_set")
    page.csv("open_set_curves", points)
    figure = open_set_figure(curves, best.open_set.curve.lowest)
    page.picture("open_set", figure, curves=len(curves), fpir=FPIRS[0])
    _rates_table("open_set", columns, rows, page)


def _calibrations(judged: Sequence[_Judged], panels: Sequence[_Judged], page: SectionWriter) -> None:
    page.words("calibration")
    rows = [{**one.named, **one.calibrated.costs} for one in judged if one.calibrated is not None]
    columns = [
        Column("label", "Run"),
        Column("cllr_before", "Cllr, cosine read as a probability", "{:.3f}".format, numeric=True),
        Column("cllr", "Cllr, calibrated", "{:.3f}".format, numeric=True),
        Column("cllr_min", "Minimum Cllr", "{:.3f}".format, numeric=True),
    ]
    if rows:
        _reliability(panels, page)
        page.words("cllr")
        page.table("calibration", columns, rows, page.csv("calibration", rows))
    _not_validated(judged, "scores cannot be calibrated", page)


def _reliability(panels: Sequence[_Judged], page: SectionWriter) -> None:
    calibrated = {one.run.label: one.calibrated for one in panels if one.calibrated is not None}
    rows = [
        {**one.named, "prediction": name, **values}
        for one in panels
        if one.calibrated is not None
        for name, diagram in one.calibrated.diagrams.items()
        for values in _by_row(vars(diagram))
    ]
    if calibrated:
        page.csv("reliability", rows)
        figure = reliability_figure({label: found.diagrams for label, found in calibrated.items()})
        page.picture("reliability", figure, panels=calibrated)


def _by_row(columns: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    lists = (column.tolist() for column in columns.values())
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _curve_of(one: _Judged, curve: ErrorTradeoff, best: _Judged) -> list[ErrorCurve]:
    """The curve of a run that has a colour, and none of one that has not; the best one's comes with its band."""
    if one.run.style is None:
        return []
    band = (curve.low, curve.high) if one is best else None
    return [ErrorCurve(one.run.label, one.run.style, curve.false, curve.missed, band)]


def _curve_rows(
    one: _Judged, curve: ErrorTradeoff, titles: tuple[str, str], counts: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Rows of a curve's file, which says of each point whether there are enough people to measure it.

    `titles` are those of the two error rates, the false one first.
    """
    false, missed = titles
    measurable = np.where(curve.measurable, "true", "false")
    told = {"threshold": curve.thresholds, false: curve.false, missed: curve.missed, "measurable": measurable}
    return [{**one.named, **values, **counts} for values in _by_row(told)]


def _rates_table(
    name: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], page: SectionWriter, **values: Any
) -> None:
    """Show rates with their intervals; the file has them as plain numbers. Then tell which to doubt, and why."""
    csv = page.csv(name, [_plain(row) for row in rows])
    page.table(name, [Column("label", "Run"), *columns], rows, csv, **values)
    rates = [value for row in rows for value in row.values() if isinstance(value, RateEstimate)]
    page.words("doubtful", doubts=_distinct(rate.reason for rate in rates if rate.value is not None))
    page.words("not_measurable", reasons=_distinct(rate.reason for rate in rates if rate.value is None), where="")


def _rate_column(key: str, title: str) -> Column:
    return Column(key, f"{title} (%)", _shown, numeric=True)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, one in row.items():
        if isinstance(one, RateEstimate):
            ends = {f"{key}_low": one.low, f"{key}_high": one.high}
            plain |= {key: one.value, **ends, f"{key}_reason": one.reason or None}
        else:
            plain[key] = one
    return plain


def _not_validated(judged: Sequence[_Judged], consequence: str, page: SectionWriter) -> None:
    reasons: dict[str, list[ReportRun]] = {}
    for one in judged:
        if one.not_validated:
            reasons.setdefault(one.not_validated, []).append(one.run)
    page.words("not_validated", reasons=reasons, consequence=consequence)


def _distinct(reasons: Iterable[str]) -> list[str]:
    """Return each reason once, as several runs may share it."""
    return list(dict.fromkeys(filter(None, reasons)))


def _key(name: str, level: float) -> str:
    return f"{name}_{level:g}"


def _shown(one: RateEstimate) -> str:
    if one.value is None:
        return "not measurable" if one.below is None else f"below {in_percent(one.below)}"
    if one.low is None or one.high is None:
        return f"{in_percent(one.value)} (no interval)"
    return f"{in_percent(one.value)} ({in_percent(one.low)} to {in_percent(one.high)})"


def _rate(one: RateEstimate) -> str:
    if one.value is None:
        return _shown(one) if one.below is None else f"{_shown(one)} %"
    return f"{in_percent(one.value)} %"


def _full_stop(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
