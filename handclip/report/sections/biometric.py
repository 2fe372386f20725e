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
    FixedThresholds,
    RateEstimate,
    ScoredPairs,
    Verification,
    fix_thresholds,
    in_percent,
    verify,
)
from handclip.plurals import counted
from handclip.report.figures.verification import (
    ErrorCurve,
    ReliabilityCurve,
    ScoreDensities,
    error_tradeoff_figure,
    open_set_figure,
    reliability_figure,
    score_densities_figure,
)
from handclip.report.report_data import ReportData, ReportRun, why_not_searched
from handclip.report.report_writer import Block, Heading, Note, Picture, ReportWriter, Section, Table, Text

Floats = NDArray[np.float64]

_BINS = 60
_LEFT_OUT = 0.02
"""Share of the lowest scores of either kind that density figures may cut off."""

_NOT_MEASURABLE = "not measurable"

_INTRODUCTION = (
    "A biometric system compares two photographs and accepts that they show the same person if their similarity is at "
    "least a threshold. A comparison of two photographs of one person is called genuine, one of two people impostor. "
    "The false match rate (FMR) is the share of impostor comparisons that are accepted, the false non-match rate "
    "(FNMR) the share of genuine comparisons that are rejected. A higher threshold lowers the first and raises the "
    "second."
)
_RATES_TEXT = (
    "The equal error rate (EER) is the rate at which FMR and FNMR are the same; between two neighbouring scores both "
    "are taken to change in a straight line. FNMR at FMR 1 % is the share of genuine comparisons that are lost when "
    "the threshold is the lowest score that lets at most 1 % of the impostors in. Both choose their threshold on the "
    "scores they are computed from, which is the custom for comparing systems, but flatters them."
)
_THRESHOLDS_TEXT = (
    "In use, a threshold has to be fixed before the people come. Here it is fixed on the validation split, without any "
    "score of the test split, and then applied to the test split. There FMR or FNMR can come out far from what the "
    "threshold was meant for, for three reasons: the scores of people seen in training are not like those of new "
    "people (not so for baselines, and for models trained on another data set, which have seen neither); a threshold "
    "that is fixed on few people is a matter of chance, which the intervals do not hold, since they take it as given; "
    "and the photographs of the two splits may differ."
)
_OPEN_SET_TEXT = (
    "In an open set, the person may not be in the gallery at all. Every query is searched for twice: with its "
    "photographs in the gallery, where it is missed if another person comes first or the score is below the threshold "
    "(false negative identification rate, FNIR), and with them taken out, where any score from the threshold up is a "
    "false alarm (false positive identification rate, FPIR). Searches for one person are not independent, so people "
    f"are counted: an FPIR is measured well where {RULE_OF_30} of them are expected to cause a false alarm, which for "
    f"FPIR 10 % takes {10 * RULE_OF_30} people. Of fewer people the FNIR is shown with a warning, and it is not shown "
    f"at all where fewer than {RULE_OF_3} are expected to."
)
_CALIBRATION_TEXT = (
    "A similarity is not a probability: 0.9 does not mean that two photographs show the same person nine times in ten. "
    "Calibration, here logistic regression on the scores of the validation split, turns it into a log-likelihood "
    "ratio: how many times more often such a score comes from one person than from two. That is the strength of the "
    "evidence, not the probability of an identity, which also depends on how likely it was before the comparison (the "
    "prior)."
)
_CLLR_TEXT = (
    "Cllr is what the ratios cost, in bits: 0 if each tells everything, 1 if they tell nothing, more than 1 if they "
    "mislead. The minimum is what the best rising function of the scores would cost. That function is fitted on the "
    "test split itself, so the minimum is out of reach: what the calibrated scores cost beyond it is lost because they "
    "were calibrated on other people, and because a straight line need not have the right shape. Cllr has no interval "
    "here, so small differences between runs say nothing."
)


@dataclass(frozen=True, eq=False)
class _Calibrated:
    """Cost of the ratios of the test scores, and how often predictions come true."""

    slope: float
    offset: float
    cllr_before: float
    cllr_after: float
    cllr_minimum: float
    before: Reliability
    after: Reliability


@dataclass(frozen=True, eq=False)
class _Judged:
    """What is shown of one run; `not_validated` says why nothing was fixed on validation scores, where it was not."""

    run: ReportRun
    verification: Verification
    densities: tuple[Floats, Floats, Floats]
    open_set: OpenSet
    fixed: FixedThresholds | None
    calibrated: _Calibrated | None
    not_validated: str

    @property
    def criteria(self) -> list[tuple[str, float]]:
        """Thresholds that could be fixed, by what they are for; in the order of `verification.at_fixed`."""
        return [] if self.fixed is None else _criteria(self.fixed)


def biometric_section(data: ReportData, writer: ReportWriter) -> Section:
    """Measure the runs that figures show as biometric systems."""
    blocks: list[Block] = []
    judged: list[_Judged] = []
    missing: dict[str, str] = {}
    # A featured run gets panels even where it is not among those that share curves.
    runs = {run.row.number: run for run in (*data.shown, *data.featured)}
    for _, run in sorted(runs.items()):
        one = _judge(run)
        if isinstance(one, _Judged):
            judged.append(one)
        else:
            missing[run.label] = one
    if judged:
        by_number = {one.run.row.number: one for one in judged}
        panels = [by_number[run.row.number] for run in data.featured if run.row.number in by_number] or judged[:1]
        best = by_number.get(data.best.row.number, judged[0])
        blocks += [Text(_INTRODUCTION), Text(_counts(best, len(judged)))]
        blocks += _scores(panels, best, writer)
        blocks += _rates(judged, best, writer, data)
        blocks += _thresholds(judged, writer, data)
        blocks += _open_sets(judged, best, writer, data)
        blocks += _calibrations(judged, panels, writer, data)
    if missing:
        first = next(iter(missing.values()))
        blocks.append(Note(f"Without error rates: {'; '.join(missing)}. Of the first of them: {first}", kind="missing"))
    return Section(
        anchor="biometric",
        title="As a biometric system",
        question="How often would a system that uses these scores accept the wrong person, and reject the right one?",
        blocks=blocks,
    )


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
    at = [threshold for _, threshold in _criteria(fixed)] if fixed is not None else []
    return _Judged(
        run=run,
        verification=verify(pairs, at),
        densities=_densities(pairs),
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


def _criteria(fixed: FixedThresholds) -> list[tuple[str, float]]:
    by_fmr = [(f"FMR {100 * fmr:g} %", threshold) for fmr, threshold in fixed.fmr.items() if threshold is not None]
    return [("EER", fixed.eer), *by_fmr]


def _densities(pairs: ScoredPairs) -> tuple[Floats, Floats, Floats]:
    """Edges of bins, and the densities of genuine and impostor scores in them; the lowest few are left out."""
    low = float(min(np.quantile(scores, _LEFT_OUT) for scores in pairs.rising))
    high = float(pairs.scores[-1])
    edges = np.linspace(low, high if high > low else low + 1e-3, _BINS + 1)
    impostor, genuine = (
        np.histogram(scores, edges)[0] / (len(scores) * (edges[1] - edges[0])) for scores in pairs.rising
    )
    return edges, genuine, impostor


def _calibrate(validation: ScoredPairs, test: ScoredPairs) -> _Calibrated:
    calibration = fit_calibration(validation.genuine, validation.impostor)
    # Ten million impostors would take a gigabyte, and say no more than a million of them.
    impostor = thinned(test.impostor)
    before = cosine_as_probability(test.genuine), cosine_as_probability(impostor)
    after = calibration.llr(test.genuine), calibration.llr(impostor)
    return _Calibrated(
        slope=calibration.slope,
        offset=calibration.offset,
        cllr_before=cllr(*before),
        cllr_after=cllr(*after),
        cllr_minimum=minimum_cllr(test.genuine, impostor),
        before=reliability(*before),
        after=reliability(*after),
    )


def _counts(one: _Judged, runs: int) -> str:
    found = one.verification
    each = "Each run is" if runs > 1 else "The run is"
    several = f"{found.pairs_of_people:,} different pairs of people are"
    pairs = several if found.pairs_of_people > 1 else "one pair of people is"
    return (
        f"{each} judged by {found.genuine:,} genuine and {found.impostor:,} impostor comparisons of {found.people:,} "
        f"people, over all draws and aspects; {pairs} among them. "
        "The photographs of one person succeed or fail together, so intervals (95 %) come from resampling people, and "
        f"what counts are not comparisons but people. FMR and EER are shown only where they amount to {RULE_OF_30} "
        "errors among the pairs of people (the rule of 30: then a rate is within 30 % of the truth with 90 % "
        f"confidence), FNMR and EER only for {FEWEST_PEOPLE} people or more."
    )


def _scores(panels: Sequence[_Judged], best: _Judged, writer: ReportWriter) -> list[Block]:
    eer = best.verification.eer
    finding = (
        ""
        if eer.value is None
        else (
            f" In run {best.run.label} they overlap so far that {_rate(eer)} of either are on the wrong side of the "
            "threshold of equal errors."
        )
    )
    figure = score_densities_figure(
        [ScoreDensities(one.run.label, *one.densities, None if one.fixed is None else one.fixed.eer) for one in panels]
    )
    picture = writer.picture(
        "score_densities",
        figure,
        alt=f"Densities of genuine and impostor similarities of {counted(len(panels), 'run')}.{finding}",
        caption=(
            "How similar photographs of the same person are (line), and photographs of two people (grey area). The "
            "less they overlap, the fewer errors. Similarities of different models are on scales of their own: only "
            f"the overlap can be compared. At most {100 * _LEFT_OUT:g} % of either kind lie left of the edge."
        ),
    )
    return [Heading("Genuine and impostor scores"), picture]


def _rates(judged: Sequence[_Judged], best: _Judged, writer: ReportWriter, data: ReportData) -> list[Block]:
    curves = [
        ErrorCurve(
            label=one.run.label,
            style=one.run.style,
            false=one.verification.fmr,
            missed=one.verification.fnmr,
            band=(one.verification.fnmr_low, one.verification.fnmr_high) if one is best else None,
        )
        for one in judged
        if one.run.style is not None
    ]
    writer.csv(
        "det_curves",
        [
            row
            for one in judged
            for row in _curve_rows(
                one,
                one.verification.measurable,
                threshold=one.verification.thresholds,
                fmr=one.verification.fmr,
                fnmr=one.verification.fnmr,
                counts=_compared(one),
            )
        ],
    )
    picture = writer.picture(
        "det_roc",
        error_tradeoff_figure(curves, best.verification.lowest_fmr),
        alt=(
            f"Detection error trade-off and receiver operating characteristic of {counted(len(curves), 'run')}. "
            f"Equal error rates: {'; '.join(f'{one.run.label}: {_rate(one.verification.eer)}' for one in judged)}."
        ),
        caption=(
            "Both error rates for every threshold. Left: the axes are stretched as a normal distribution is, so that "
            "small rates can be seen; on the dotted line both are the same (EER). Right: the same as the share of "
            f"genuine comparisons that are accepted. Band: 95 % interval over people of {best.run.label}. Hatched: "
            f"fewer than {RULE_OF_30} false matches can be expected among the pairs of people."
        ),
    )
    rows: list[dict[str, Any]] = []
    cells = []
    for one in judged:
        found = one.verification
        columns = {"eer": found.eer, **{_key("fnmr_at_fmr", fmr): found.fnmr_at_fmr[fmr] for fmr in FMRS}}
        rows.append({"run": one.run.row.run, **_numbers(columns), **_compared(one)})
        cells.append([one.run.label, *map(_shown, columns.values())])
    titles = ["Run", "EER (%)", *(f"FNMR at FMR {100 * fmr:g} % (%)" for fmr in FMRS)]
    table = _table(
        writer,
        "verification",
        titles,
        cells,
        rows,
        f"Error rates with 95 % intervals over people. {_denominators(best)} {_protocol(data)}.",
    )
    shown = [rate for one in judged for rate in (one.verification.eer, *one.verification.fnmr_at_fmr.values())]
    return [Heading("Accepting and rejecting"), Text(_RATES_TEXT), picture, table, *_remarks(shown)]


def _thresholds(judged: Sequence[_Judged], writer: ReportWriter, data: ReportData) -> list[Block]:
    blocks: list[Block] = [Heading("Thresholds fixed beforehand"), Text(_THRESHOLDS_TEXT)]
    fixed_on = [one.fixed.people for one in judged if one.fixed is not None]
    rows: list[dict[str, Any]] = []
    cells = []
    for one in judged:
        for (criterion, threshold), (fmr, fnmr) in zip(one.criteria, one.verification.at_fixed, strict=True):
            rows.append(
                {
                    "run": one.run.row.run,
                    "fixed_for": criterion,
                    "threshold": threshold,
                    **_numbers({"fmr": fmr, "fnmr": fnmr}),
                    **_compared(one),
                }
            )
            cells.append([one.run.label, criterion, f"{threshold:.6f}", _shown(fmr), _shown(fnmr)])
    if cells:
        people = " to ".join(f"{count:,}" for count in sorted({min(fixed_on), max(fixed_on)}))
        titles = ["Run", "Fixed for", "Threshold", "FMR on test (%)", "FNMR on test (%)"]
        caption = (
            "Thresholds from the validation split and the error rates they give on the test split, with 95 % intervals "
            f"over people. {_denominators(judged[0])} Thresholds were fixed on {people} people. {_protocol(data)}."
        )
        blocks.append(_table(writer, "thresholds", titles, cells, rows, caption))
    blocks += _remarks([rate for one in judged for rates in one.verification.at_fixed for rate in rates])
    blocks += _why(
        (reason for one in judged if one.fixed is not None for reason in one.fixed.reasons.values()),
        "in the validation split ",
    )
    leaning = [one.run.label for one in judged if one.fixed is not None and one.run.validation_was_trained_on]
    if leaning:
        blocks.append(
            Note(
                "The validation photographs were trained on as well (train_split: train_all), so their genuine scores "
                "are too high and thresholds and calibration lean towards rejecting. Train with train_split: train "
                f"to avoid this. Runs: {'; '.join(leaning)}."
            )
        )
    return blocks + _no_validation(judged, "thresholds cannot be fixed beforehand")


def _open_sets(judged: Sequence[_Judged], best: _Judged, writer: ReportWriter, data: ReportData) -> list[Block]:
    curves, points = [], []
    for one in judged:
        found = one.open_set
        band = (found.fnir_low, found.fnir_high) if one is best else None
        if one.run.style is not None:
            curves.append(ErrorCurve(one.run.label, one.run.style, found.fpir, found.fnir, band))
        curve = {"threshold": found.thresholds, "fpir": found.fpir, "fnir": found.fnir}
        points += _curve_rows(one, found.measurable, counts=_searched(one), **curve)
    rows: list[dict[str, Any]] = []
    cells = []
    for one in judged:
        at_fpir = {_key("fnir_at_fpir", fpir): one.open_set.fnir_at_fpir[fpir] for fpir in FPIRS}
        columns = {"fnir_accepting_all": one.open_set.fnir_accepting_all, **at_fpir}
        rows.append({"run": one.run.row.run, **_numbers(columns), **_searched(one)})
        cells.append([one.run.label, *map(_shown, columns.values())])
    writer.csv("open_set_curves", points)
    picture = writer.picture(
        "open_set",
        open_set_figure(curves, best.open_set.lowest_fpir),
        alt=(
            f"False negative against false positive identification rate of {counted(len(curves), 'run')}. "
            f"FNIR at FPIR {100 * FPIRS[0]:g} % of {best.run.label}: {_rate(best.open_set.fnir_at_fpir[FPIRS[0]])}."
        ),
        caption=(
            f"{best.open_set.mated:,} searches with the person in the gallery, {best.open_set.non_mated:,} without, "
            f"for {best.open_set.people:,} people. At the right end every answer is accepted, and what is missed are "
            "the queries whose first rank is wrong (1 − Rank-1). "
            f"Band: 95 % interval over people of {best.run.label}. Hatched: fewer than {RULE_OF_30} people are "
            "expected to cause a false alarm."
        ),
    )
    titles = ["Run", "FNIR, every answer accepted (%)", *(f"FNIR at FPIR {100 * fpir:g} % (%)" for fpir in FPIRS)]
    caption = (
        "Missed searches, first if every answer is accepted (1 − Rank-1, over all searches together), then when at "
        "most so many searches for people who are not in the gallery give an alarm; 95 % intervals over the people "
        f"searched for. FNIR is of {best.open_set.mated:,} searches with the person in the gallery, FPIR of "
        f"{best.open_set.non_mated:,} without. {_protocol(data)}."
    )
    table = _table(writer, "open_set", titles, cells, rows, caption)
    rates = [rate for one in judged for rate in (one.open_set.fnir_accepting_all, *one.open_set.fnir_at_fpir.values())]
    return [Heading("Open-set identification"), Text(_OPEN_SET_TEXT), picture, table, *_remarks(rates)]


def _calibrations(
    judged: Sequence[_Judged], panels: Sequence[_Judged], writer: ReportWriter, data: ReportData
) -> list[Block]:
    blocks: list[Block] = [Heading("Calibration"), Text(_CALIBRATION_TEXT)]
    rows: list[dict[str, Any]] = []
    cells = []
    for one in judged:
        if (found := one.calibrated) is not None:
            costs = {"cllr_before": found.cllr_before, "cllr": found.cllr_after, "cllr_min": found.cllr_minimum}
            rows.append({"run": one.run.row.run, **costs, "slope": found.slope, "offset": found.offset})
            cells.append([one.run.label, *(f"{cost:.3f}" for cost in costs.values())])
    if cells:
        if any(one.calibrated is not None for one in panels):
            blocks.append(_reliability(panels, writer))
        blocks.append(Text(_CLLR_TEXT))
        titles = ["Run", "Cllr, cosine read as a probability", "Cllr, calibrated", "Minimum Cllr"]
        caption = (
            "Cost of log-likelihood ratios on the test split, in bits; lower is better. A cosine is read as a "
            f"probability by taking (1 + cosine) / 2 for it. {_protocol(data)}."
        )
        blocks.append(_table(writer, "calibration", titles, cells, rows, caption))
    return blocks + _no_validation(judged, "scores cannot be calibrated")


def _reliability(panels: Sequence[_Judged], writer: ReportWriter) -> Picture:
    curves, rows, parts = [], [], []
    for one in panels:
        if (found := one.calibrated) is not None:
            diagrams = (("calibrated", found.after), ("cosine read as a probability", found.before))
            curves.append((one.run.label, [ReliabilityCurve(name, d.predicted, d.observed) for name, d in diagrams]))
            rows += [row for name, diagram in diagrams for row in _reliability_rows(one, name, diagram)]
            parts.append(f"{one.run.label}: Cllr {found.cllr_before:.2f} before and {found.cllr_after:.2f} after")
    writer.csv("reliability", rows)
    return writer.picture(
        "reliability",
        reliability_figure(curves),
        alt=f"Reliability of predictions on the test split before and after calibration. {'; '.join(parts)}.",
        caption=(
            "Test comparisons are sorted into bins by the predicted probability that they show the same person, as if "
            "half of all comparisons were genuine. On the diagonal, predictions come true as often as they say; below "
            f"it, evidence is overstated. Without calibration, (1 + cosine) / 2 is taken for a probability. Bins with "
            f"fewer than {FEW_PAIRS} comparisons are merged with the next."
        ),
    )


def _reliability_rows(one: _Judged, name: str, diagram: Reliability) -> list[dict[str, Any]]:
    columns = (diagram.predicted, diagram.observed, diagram.genuine, diagram.impostor)
    keys = ("predicted", "observed", "genuine", "impostor")
    return [
        {"run": one.run.row.run, "prediction": name, **dict(zip(keys, values, strict=True))}
        for values in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _compared(one: _Judged) -> dict[str, int]:
    """Return what the rates of verification are of: FNMR of the genuine comparisons, FMR of the impostor ones."""
    found = one.verification
    return {
        "genuine": found.genuine,
        "impostor": found.impostor,
        "people": found.people,
        "pairs_of_people": found.pairs_of_people,
    }


def _searched(one: _Judged) -> dict[str, int]:
    """Return what the rates of identification are of: FNIR of the mated searches, FPIR of the non-mated ones."""
    return {"mated": one.open_set.mated, "non_mated": one.open_set.non_mated, "people": one.open_set.people}


def _curve_rows(
    one: _Judged, measurable: NDArray[np.bool_], *, counts: Mapping[str, int], **columns: Floats
) -> list[dict[str, Any]]:
    """Rows of a curve's file, which says of each point whether there are enough people to measure it."""
    run = one.run.row.run
    return [
        {
            "run": run,
            **dict(zip(columns, values, strict=True)),
            "measurable": "true" if enough else "false",
            **counts,
        }
        for enough, *values in zip(measurable.tolist(), *(column.tolist() for column in columns.values()), strict=True)
    ]


def _no_validation(judged: Sequence[_Judged], consequence: str) -> list[Block]:
    notes: list[Block] = []
    for reason in dict.fromkeys(one.not_validated for one in judged if one.not_validated):
        without = "; ".join(one.run.label for one in judged if one.not_validated == reason)
        mend = "Prepare the data set with a validation split and evaluate the runs again with --overwrite"
        notes.append(Note(f"Not for {without}: {reason}, so that {consequence}. {mend}.", kind="missing"))
    return notes


def _remarks(rates: Sequence[RateEstimate]) -> list[Block]:
    """Notes on the rates that are not measurable, and on those that are shown and rest on little."""
    doubts = "; ".join(dict.fromkeys(rate.reason for rate in rates if rate.value is not None and rate.reason))
    notes: list[Block] = _why(rate.reason for rate in rates if rate.value is None)
    return [*([Note(f"{doubts}. Read the interval, not the value.")] if doubts else []), *notes]


def _why(reasons: Iterable[str], where: str = "") -> list[Block]:
    """A note on what is not measurable, once for all runs that share a reason."""
    told = "; ".join(dict.fromkeys(filter(None, reasons)))
    return [Note(f"{_NOT_MEASURABLE.capitalize()} {where}with so few people: {told}.", kind="missing")] if told else []


def _table(
    writer: ReportWriter,
    name: str,
    titles: Sequence[str],
    cells: list[list[str]],
    rows: list[dict[str, Any]],
    caption: str,
) -> Table:
    """A table whose file has plain numbers where the page has intervals beside them."""
    return Table(
        titles, [title not in ("Run", "Fixed for") for title in titles], cells, caption, writer.csv(name, rows)
    )


def _numbers(columns: Mapping[str, RateEstimate]) -> dict[str, float | str | None]:
    numbers: dict[str, float | str | None] = {}
    for key, one in columns.items():
        numbers |= {key: one.value, f"{key}_low": one.low, f"{key}_high": one.high, f"{key}_reason": one.reason or None}
    return numbers


def _key(name: str, level: float) -> str:
    return f"{name}_{level:g}"


def _shown(one: RateEstimate) -> str:
    if one.value is None:
        return _NOT_MEASURABLE if one.below is None else f"below {in_percent(one.below)}"
    if one.low is None or one.high is None:
        return f"{in_percent(one.value)} (no interval)"
    return f"{in_percent(one.value)} ({in_percent(one.low)} to {in_percent(one.high)})"


def _rate(one: RateEstimate) -> str:
    if one.value is None:
        return _NOT_MEASURABLE if one.below is None else f"below {in_percent(one.below)} %"
    return f"{in_percent(one.value)} %"


def _denominators(one: _Judged) -> str:
    found = one.verification
    return f"FNMR is of {found.genuine:,} genuine comparisons, FMR of {found.impostor:,} impostor ones."


def _protocol(data: ReportData) -> str:
    """The protocol of all of this section: similarities in the plain gallery, never re-ranked."""
    one = data.block.protocol
    aspects = len(one.gallery_images)
    of = f"{one.dataset}, {aspects} aspects together" if aspects > 1 else f"{one.dataset} {one.aspect}"
    draws = f"{one.draws} draws together" if one.draws > 1 else "one draw"
    return f"Protocol: {of}, gallery, flip: {one.flip}, {draws}, no re-ranking"


def _full_stop(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
