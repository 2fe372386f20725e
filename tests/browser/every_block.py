"""A page with every kind of block, and with what breaks pages: endless words, wide tables, large and small figures."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from handclip.report.figures.style import new_figure, series_style, styled
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


@styled
def _bars() -> Figure:
    figure = new_figure(8, 3.5)
    axes = figure.add_subplot()
    axes.barh(RUNS, [71, 88, 94, 91], xerr=[4, 3, 2, 3], color=[series_style(number)["color"] for number in range(4)])
    axes.set_xlabel("Rank-1 (%)")
    return figure


@styled
def _panels() -> Figure:
    figure = new_figure(10, 6)
    for axes in figure.subplots(2, 3).flat:
        for number in range(4):
            axes.plot(np.arange(20), np.exp(-np.arange(20) / (4 + number)), **series_style(number))
        axes.set(title="Cross-entropy", xlabel="Epoch", ylabel="Loss")
    return figure


@styled
def _small() -> Figure:
    figure = new_figure(3.5, 2.5)
    axes = figure.add_subplot()
    axes.bar(["Run 2"], [120])
    axes.set_ylabel("Images/s")
    return figure


@styled
def _photographs() -> Figure:
    figure = new_figure(10, 4)
    down, across = np.mgrid[-1:1:64j, -1:1:48j]
    for number, axes in enumerate(figure.subplots(3, 11).flat):
        palm = np.exp(-2 * (down**2 + (across - number / 33) ** 2))
        axes.imshow(np.stack([palm, 0.8 * palm, 0.6 * palm], axis=-1))
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.set_title("query" if number % 11 == 0 else f"0.{99 - number}", fontsize=9, fontweight="normal")
    return figure


@styled
def _curves() -> Figure:
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    rates = np.geomspace(1e-4, 1, 50)
    for number, run in enumerate(RUNS):
        axes.loglog(
            100 * rates, 100 * (1 - rates) ** (number + 1) * 0.3 / (number + 1), label=run, **series_style(number)
        )
    axes.set(xlabel="FMR (%)", ylabel="FNMR (%)", ylim=(0.1, 100))
    figure.legend(loc="outside lower center", ncols=2)
    return figure
