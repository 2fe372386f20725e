"""Where models look, on the same hands."""

from collections.abc import Sequence

import numpy as np

from handclip.file_names import CONFIG, EXPLANATIONS
from handclip.models.attention_maps import GRAD_CAM, ROLLOUT, SPATIAL_ATTENTION
from handclip.report.figures.attention import HALF, Maps, attention_figure
from handclip.report.matrix import merit
from handclip.report.report_data import ReportData, ReportRun
from handclip.report.report_writer import ReportWriter, Section
from handclip.runs.artifacts import Explanation

_MOST_HANDS = 6
_METHODS = (ROLLOUT, GRAD_CAM, SPATIAL_ATTENTION)


def attention_section(data: ReportData, writer: ReportWriter) -> Section:
    """Lay the maps of the featured runs, and of one for each method they lack, over the same photographs."""
    page = writer.section("attention", explanations=EXPLANATIONS, config=CONFIG)
    runs = _runs(data)
    explained = [run for run in runs if run.explanations]
    shown = _same_hands(explained)
    if shown:
        maps = [
            Maps(run.label, method, [one.maps[method] for one in explanations])
            for run, explanations in shown.items()
            for method in _methods_of(run)
        ]
        hands = [(one.aspect, one.photograph) for one in shown[explained[0]]]
        bright = [(one, np.mean([np.mean(values > HALF) for values in one.values])) for one in maps]
        page.words("methods", methods=[method for method in _METHODS if any(_has(run, method) for run in shown)])
        page.picture("attention", attention_figure(hands, maps), photographic=True, hands=len(hands), bright=bright)
        page.words("photographs")
    unread = [run for run in runs if run.explanations is None]
    empty = [run for run in runs if run.explanations is not None and not run.explanations]
    page.words("missing", unread=unread, empty=empty, differ=explained and not shown)
    return page.finished()


def _runs(data: ReportData) -> list[ReportRun]:
    """Return the featured runs, and for each method that none of them has, the best run that has it."""
    runs = list(data.featured)
    others = sorted((run for run in data.runs if run not in runs), key=lambda run: merit(run.row), reverse=True)
    for method in _METHODS:
        if not any(_has(run, method) for run in runs):
            runs += [run for run in others if _has(run, method)][:1]
    return runs


def _methods_of(run: ReportRun) -> list[str]:
    """Return the full names of the methods, of which some say how strong a module is."""
    return list(run.explanations[0].maps) if run.explanations else []


def _has(run: ReportRun, method: str) -> bool:
    return any(name.startswith(method) for name in _methods_of(run))


def _same_hands(runs: Sequence[ReportRun]) -> dict[ReportRun, list[Explanation]]:
    """Return of each run what explains the photographs that all have, in the order of the first; empty without any."""
    by_hand = {run: {(one.aspect, one.image): one for one in run.explanations or ()} for run in runs}
    first = next(iter(by_hand.values()), {})
    hands = [hand for hand in first if all(hand in others for others in by_hand.values())][:_MOST_HANDS]
    return {run: [found[hand] for hand in hands] for run, found in by_hand.items()} if hands else {}
