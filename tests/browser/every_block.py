"""A page with every kind of block, and with what breaks pages: endless words, wide tables, large and small figures."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from handclip.report.figures.retrieval import RankList, Tile, rank_list_figure
from handclip.report.figures.style import new_figure, styled
from handclip.report.figures.training import EpochCurve, EpochPanel, ScoreBar, epochs_figure, scores_figure
from handclip.report.figures.verification import ErrorCurve, open_set_figure
from handclip.report.html import render_page
from handclip.report.prose import percent
from handclip.report.report_writer import (
    Commands,
    Heading,
    Note,
    Picture,
    ReportWriter,
    Section,
    Text,
)
from handclip.report.table import Column, Table

RUNS = (
    "1. baseline ViT-B/16",
    "2. stage 1 ViT-B/16 ce",
    "3. stage 2 ViT-B/16 ce + triplet + arcface",
    "4. MBA-Net ce + triplet",
)
ENDLESS_WORD = "vit_small_patch16_224_cross_entropy_triplet_center_arcface" * 6


def write_every_block(folder: Path) -> Path:
    writer = ReportWriter(folder)
    page = folder / "report.html"
    lead = [
        "Stage 2 of ViT-B/16 names the right person first in 94.1 % of the searches, 3.2 points more often than the "
        "best CNN. The difference is larger than what a change of people would bring (1.4 to 5.1 points).",
        "The study compares 4 runs on 20 people that no run was trained on, each drawn 10 times. All numbers hold for "
        "the gallery of the same aspect of the hand.",
    ]
    sections = [_verdict(writer), _training(writer), _retrieval(writer), _biometric(writer), _manner()]
    made = {
        "Version": "HandCLIP 0.1.0, commit 24308fa",
        "Made": "2026-01-12 10:41 UTC",
        "From": "4 evaluations in /home/someone/studies/" + ENDLESS_WORD,
    }
    page.write_text(
        render_page("Who is it? Four networks and the hands of 20 people", lead, sections, made=made), "utf-8"
    )
    return page


def _verdict(writer: ReportWriter) -> Section:
    metrics = [
        f"{place} {metric}" for place in ("dorsal right", "dorsal left") for metric in ("Rank-1", "Rank-5", "mAP")
    ]
    columns = [Column("run", "Run"), *(Column(name, f"{name} (%)", percent, numeric=True) for name in metrics * 2)]
    rows = [
        {"run": run, **dict.fromkeys(metrics, 0.7 + 0.05 * number)} for number, run in enumerate((*RUNS, ENDLESS_WORD))
    ]
    return Section(
        "verdict",
        "The verdict",
        "Which run finds the right person most often, and is the difference real?",
        [
            Text("Each run is asked the same questions: whose hand is this, among the people of the gallery? " * 3),
            Table(columns, rows, "All runs on all aspects; the higher, the better.", writer.csv("comparison", rows)),
            writer.picture(
                "rank1", _bars(), alt="Bars of Rank-1: baseline 71 %, stage 2 94 %.", caption="Rank-1 with intervals."
            ),
            Note("Only 20 people were tested: differences below 5 points are within the error of the measurement."),
            Table(
                [Column("metric", "Metric"), Column("value", "Value (%)", percent, numeric=True)],
                [{"metric": "Rank-1", "value": 0.941}, {"metric": "mAP", "value": None}],
                "A small table does not fill the page.",
            ),
        ],
    )


def _training(writer: ReportWriter) -> Section:
    return Section(
        "training",
        "How training went",
        "Did the losses fall, and was it stopped at the right time?",
        [
            writer.picture(
                "losses",
                _panels(),
                alt="Six falling curves.",
                caption="Each loss by epoch. The dot marks the epoch of the highest validation Rank-1. " * 2,
            ),
            Note(
                "Memory was not recorded by run 1, since it was not trained. Evaluate it again with --overwrite.",
                kind="missing",
            ),
            Heading("Speed, and the memory that it takes"),
            Text(f"A word without end: {ENDLESS_WORD}."),
            writer.picture(
                "speed", _small(), alt="One bar of 120 images/s.", caption="A figure that is small by nature."
            ),
        ],
    )


def _retrieval(writer: ReportWriter) -> Section:
    ranks = writer.picture(
        "ranks",
        _photographs(),
        alt="Rank lists of three queries; in two the first is right.",
        caption="A query on the left, and the ten nearest of the gallery.",
        photographic=True,
    )
    return Section(
        "retrieval", "Who was found", "What do right and wrong answers look like?", [Heading("Rank lists"), ranks] * 6
    )


def _biometric(writer: ReportWriter) -> Section:
    det: Picture = writer.picture(
        "det", _curves(), alt="DET curves of four runs; stage 2 lies lowest.", caption="Detection error trade-off."
    )
    heading = f"A heading with {ENDLESS_WORD}"
    return Section(
        "biometric",
        "As a biometric system, in the terms of ISO/IEC 19795-1",
        "How often does it confuse two people, and how often does it not know somebody again?",
        [Heading(heading), Text("A similarity is not a probability."), det, *[det] * 8],
    )


def _manner() -> Section:
    return Section(
        "manner",
        f"How it was made <{ENDLESS_WORD}>",
        "What is needed to run it again?",
        [
            Commands(
                [
                    "handclip study study.yml --out results",
                    "handclip evaluate --checkpoint " + "/".join(["saved_models"] * 20) + "/best.pth --overwrite",
                ]
            )
        ],
    )


def _bars() -> Figure:
    return scores_figure({"Rank-1": [ScoreBar(run, 0.7, 0.6, 0.8) for run in RUNS]})


def _panels() -> Figure:
    losses = [[math.exp(-epoch / (4 + number)) for epoch in range(20)] for number in range(4)]
    curves = [EpochCurve(RUNS[number], number, range(1, 21), values) for number, values in enumerate(losses)]
    return epochs_figure([EpochPanel("Cross-entropy", "Loss", curves)] * 6)


@styled
def _small() -> Figure:
    figure = new_figure(3.5, 2.5)
    axes = figure.add_subplot()
    axes.bar(["Run 2"], [120])
    axes.set_ylabel("Images/s")
    return figure


def _photographs() -> Figure:
    down, across = np.mgrid[-1:1:64j, -1:1:48j]
    palms = [np.exp(-2 * (down**2 + (across - number / 10) ** 2)) for number in range(11)]
    photographs = [(255 * np.stack([palm, 0.8 * palm, 0.6 * palm], axis=-1)).astype(np.uint8) for palm in palms]
    query, *found = (Tile(photograph, "7", 0.9, right=True) for photograph in photographs)
    return rank_list_figure([RankList("best", query, found, "right one\nat rank 1")] * 3)


def _curves() -> Figure:
    rates = np.geomspace(1e-4, 1, 50)[::-1]
    missed = [(1 - rates) ** (number + 1) * 0.3 / (number + 1) for number in range(4)]
    return open_set_figure([ErrorCurve(RUNS[number], number, rates, missed[number]) for number in range(4)], 0.01)
