"""Where models look, on the same hands."""

from collections.abc import Iterator, Sequence

import numpy as np

from handclip.file_names import CONFIG, EXPLANATIONS
from handclip.models.attention_maps import GRAD_CAM, ROLLOUT, SPATIAL_ATTENTION
from handclip.plurals import counted
from handclip.report.figures.attention import HALF, Maps, attention_figure
from handclip.report.matrix import merit
from handclip.report.report_data import ReportData, ReportRun
from handclip.report.report_writer import Block, Note, ReportWriter, Section, Text
from handclip.runs.artifacts import Explanation

_MOST_HANDS = 6
_Columns = list[tuple[str, str, Sequence[Explanation]]]

_METHODS = {
    ROLLOUT: (
        "Attention rollout is for vision transformers. Each of their blocks lets every patch of the image take a share "
        "of every other; followed from the last block back to the first, the shares say how much of each patch ends up "
        "in the feature that is compared. What the blocks compute from the patches is left out."
    ),
    GRAD_CAM: (
        "Grad-CAM is for convolutional networks. It takes the last feature map and weighs each of its channels by how "
        "much the image's own feature would grow with it. The map is coarse, and a network sees far beyond the "
        "cell that lights up; light on the background may come from the hand beside it."
    ),
    SPATIAL_ATTENTION: (
        "Spatial attention is a part of MBA-Net: every position takes from the positions that it attends to, and the "
        "map shows which ones those are, averaged over all positions. What is found is multiplied by gamma before it "
        "is added, and gamma starts at 0. With a gamma near 0 the module does next to nothing, wherever it attends to."
    ),
}


def attention_section(data: ReportData, writer: ReportWriter) -> Section:
    """Lay the maps of the featured runs, and of one for each method they lack, over the same photographs."""
    blocks: list[Block] = []
    runs = _runs(data)
    columns = _same_hands(_columns(runs))
    if columns:
        blocks += [Text(text) for method, text in _METHODS.items() if any(m.startswith(method) for _, m, _ in columns)]
        blocks.append(
            Note(
                "A map is a hint, not a proof of what identifies a hand: it says what had a large share in the "
                "feature, not what tells this person from another. Every map is scaled by its own largest value, and "
                "methods measure different things, so compare where maps are bright, never how bright two methods are."
            )
        )
        hands = columns[0][2]
        picture = writer.picture(
            "attention",
            attention_figure(
                [(hand.aspect, hand.photograph) for hand in hands],
                [Maps(label, method, [one.maps[method] for one in shown]) for label, method, shown in columns],
            ),
            alt=_alt(columns),
            caption=(
                f"{counted(len(hands), 'photograph')} of the test people, and where the runs look in "
                f"{'it' if len(hands) == 1 else 'them'}: the brighter, the larger the share. The line is at half of "
                "the map's largest value; a bright map without a line is above it everywhere, and points nowhere."
            ),
            photographic=True,
        )
        blocks.append(picture)
        blocks.append(
            Text(
                f"The evaluation keeps these photographs, made small, in {EXPLANATIONS}, and this page holds them as "
                "well: think of the people before you pass either on. With explained_images: 0 in the config, none "
                "are kept."
            )
        )
    blocks += _missing(runs, columns)
    return Section("attention", "Where it looks", "Which parts of a photograph does a model use?", blocks)


def _runs(data: ReportData) -> list[ReportRun]:
    """Return the featured runs, and for each method that none of them has, the best run that has it."""
    runs = list(data.featured)
    others = sorted((run for run in data.runs if run not in runs), key=lambda run: merit(run.row), reverse=True)
    for method in _METHODS:
        if not any(_has(run, method) for run in runs):
            runs += [run for run in others if _has(run, method)][:1]
    return runs


def _has(run: ReportRun, method: str) -> bool:
    return any(name.startswith(method) for one in run.explanations or () for name in one.maps)


def _columns(runs: Sequence[ReportRun]) -> _Columns:
    return [
        (run.label, method, run.explanations) for run in runs if run.explanations for method in run.explanations[0].maps
    ]


def _same_hands(columns: _Columns) -> _Columns:
    """Keep the photographs that all have, in the order of the first."""
    by_hand = [{(one.aspect, one.image): one for one in explanations} for _, _, explanations in columns]
    common = [hand for hand in (by_hand[0] if by_hand else ()) if all(hand in other for other in by_hand)]
    hands = common[:_MOST_HANDS]
    if not hands:
        return []
    return [
        (label, method, [found[hand] for hand in hands])
        for (label, method, _), found in zip(columns, by_hand, strict=True)
    ]


def _alt(columns: _Columns) -> str:
    hands = columns[0][2]
    bright = (
        f"{100 * np.mean([np.mean(one.maps[method] > HALF) for one in explanations]):.0f} % by {method} of {label}"
        for label, method, explanations in columns
    )
    return (
        f"{counted(len(hands), 'photograph')} of hands under maps of where models look. Above half of a map's largest "
        f"value lies, on average, this share of the photograph: {'; '.join(bright)}."
    )


def _missing(runs: Sequence[ReportRun], columns: _Columns) -> Iterator[Note]:
    unread = [run for run in runs if run.explanations is None]
    empty = [run for run in runs if run.explanations is not None and not run.explanations]
    if unread:
        of_which = ". Of the first of them" if len(unread) > 1 else ""
        again = " That needs the photographs and the model." if unread[0].with_photographs else ""
        yield Note(
            f"No maps of {_names(unread)}{of_which}: {unread[0].missing['explanations']}.{again}",
            "missing",
        )
    if empty:
        yield Note(
            f"No maps of {_names(empty)}: the evaluation has kept none. Its {CONFIG} says which: with "
            "explained_images: 0 none were asked for, else no method fits the model. To have some, set "
            "explained_images: 4 and evaluate again with --overwrite.",
            "missing",
        )
    if not columns and len(unread) + len(empty) < len(runs):
        yield Note(
            "The runs' evaluations have kept different photographs, so that they cannot be shown side by side. "
            "Evaluate them again with --overwrite and the same explained_images.",
            "missing",
        )


def _names(runs: Sequence[ReportRun]) -> str:
    return "; ".join(run.label for run in runs)
