"""Speed on a GPU: training and inference, the real input path, and a whole study. Runs unattended.

    python benchmarks/gpu.py --out docs/benchmarks --budget 1500

Weights are random. The most important rows come first; those that the budget does not reach are counted at the end. The
table is written anew after every row, so that what was measured is kept whatever happens. `--device cpu --quick` runs
every code path in a tiny form.
"""

import argparse
import csv
import gc
import hashlib
import io
import itertools
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import harness
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from training_step import TrainingStep

from handclip.config.experiment import Augmentation
from handclip.config.study import SYNTHETIC_HANDS, StudyConfig
from handclip.cores import available_cores
from handclip.datasets.pixel_cache import PixelCache
from handclip.datasets.torch_dataset import BatchCollator, ImageDataset, LabelledImage, to_images
from handclip.datasets.transforms import ImageTransform
from handclip.errors import ConfigError
from handclip.files import write_text
from handclip.models.flops import count_flops
from handclip.parallel.hardware import choose_device, choose_precision, choose_workers, computing_in
from handclip.studies import plan_study, run_study
from handclip.synthetic import SyntheticHands, generate

PEAKS: dict[str, tuple[float, float, float]] = {
    "B200": (2250, 1125, 75),
    "H200": (989, 494.5, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 417.5, 60),
    "H100": (989, 494.5, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30.3),
    "A10G": (70, 35, 31.2),
    "RTX 4090": (165.2, 82.6, 82.6),
}
"""Dense TFLOP/s in bfloat16, TF32 and float32 from the makers' data sheets.

The first name found in the GPU's holds, as whole words.
"""

PRECISIONS = ("bfloat16", "tf32", "float32")

WIDTH, HEIGHT = 1600, 1200
"""Of a photograph of 11k Hands, in pixels."""

STUDY_GOAL_SECONDS, TRAINING_GOAL, INPUT_GOAL = 180.0, 2500.0, 1.08

AUGMENTATION = Augmentation(resize_crop=1.15, flip=0.5, rotation=15, scale=0.1, color_jitter=0.2)

LOSSES: dict[str, list[dict[str, Any]]] = {
    name: [{"type": kind} for kind in kinds]
    for name, kinds in {
        "ce": ["cross_entropy"],
        "ce_triplet": ["cross_entropy", "triplet"],
        "ce_center": ["cross_entropy", "center"],
        "ce_arcface": ["cross_entropy", "arcface"],
        "ce_triplet_center": ["cross_entropy", "triplet", "center"],
    }.items()
}


@dataclass(frozen=True)
class Case:
    """What is measured."""

    work: str
    """`training`, `inference`, `input path` or `study`."""
    model: str
    batch: int
    precision: str = "bfloat16"
    compiled: bool = False
    memory_format: str = "contiguous"
    """As in an experiment file."""


@dataclass(frozen=True)
class Result:
    """A row of the table."""

    work: str
    model: str
    batch: int
    precision: str
    compiled: bool
    memory_format: str
    images_per_second: float | None = None
    milliseconds_per_step: float | None = None
    share_of_peak: float | None = None
    """Of the chip's dense arithmetic in this precision; a training step counts as three forward passes."""
    peak_gpu_mib: float | None = None
    goal: str = ""
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What of everything runs: all on a GPU, and a tiny form of it with `--quick`."""

    models: tuple[str, ...]
    batches: tuple[int, ...]
    seconds: float
    """How long each row is measured."""
    steps_of_input: int
    photographs: int
    study: dict[str, Any]
    hands: dict[str, int]
    losses: tuple[str, ...]


FULL = Plan(
    ("vitb16", "rn50", "mbanet"),
    (256, 64, 32),
    seconds=2.0,
    steps_of_input=60,
    photographs=512,
    study={"model": "vitb16", "epochs": 30, "batch_size": 32, "validation_interval": 1},
    # Half of the people train: about 900 photographs of one aspect, as in 11k Hands.
    hands={"identities": 144, "images_per_aspect": 13, "size": 400},
    losses=tuple(LOSSES),
)
QUICK = Plan(
    ("vit_small", "resnet_small", "mbanet_small"),
    (4,),
    seconds=0.0,
    steps_of_input=3,
    photographs=4,
    study={"model": "vit_small", "epochs": 1, "batch_size": 8, "images_per_identity": 2, "input_size": 32},
    hands={"identities": 12, "images_per_aspect": 3, "size": 64},
    losses=("ce", "ce_triplet"),
)


def cases(plan: Plan) -> Iterator[Case]:
    """Yield every case, the most important first."""
    first, *_ = plan.models
    large = plan.batches[0]
    chosen = [
        Case("training", first, large),
        Case("training", first, large, compiled=True),
        Case("study", plan.study["model"], plan.study["batch_size"], memory_format="auto"),
        Case("input path", first, large, memory_format="auto"),
        *(Case("training", model, large, memory_format="channels_last") for model in plan.models[1:]),
        *(Case("inference", model, large) for model in plan.models),
        *(Case("input path", model, batch, memory_format="auto") for model in plan.models for batch in plan.batches),
    ]
    grid = itertools.product(
        (False, True), PRECISIONS, plan.batches, ("contiguous", "channels_last"), plan.models, ("training", "inference")
    )
    chosen += [Case(work, model, batch, kind, on, order) for on, kind, batch, order, model, work in grid]
    # A compiler takes a minute for a model however small it is: a tiny run comes to everything else before.
    yield from sorted(dict.fromkeys(chosen), key=lambda case: case.compiled and plan is QUICK)


class Bench:
    """Measures cases on one device."""

    def __init__(self, device: torch.device, plan: Plan, folder: Path) -> None:
        self.device = device
        self.plan = plan
        self.folder = folder
        self._peaks: dict[str, float] = {}

    def measure(self, case: Case) -> Result:
        """Return the row of a case; one that cannot be run says why."""
        row = Result(**asdict(case))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            choose_precision(case.precision, self.device)
            found = {"study": self._study, "input path": self._input_path}.get(case.work, self._speed)(case, row)
        except torch.OutOfMemoryError:
            return replace(row, note="out of memory")
        except ConfigError as error:
            return replace(row, note=str(error))
        if self.device.type != "cuda":
            return found
        return replace(found, peak_gpu_mib=round(torch.cuda.max_memory_allocated(self.device) / 2**20))

    def _speed(self, case: Case, row: Result) -> Result:
        step = self._step(case)
        images, labels = step.batch(case.batch)
        run = self._inference(step, images) if case.work == "inference" else lambda: step(images, labels)
        with computing_in(case.precision):
            seconds = self._seconds(run)
        flops = count_flops(step.model) * case.batch * (3 if case.work == "training" else 1)
        goal = ""
        if case.work == "training" and case.model == "vitb16":
            goal = f"{TRAINING_GOAL:,.0f} images/s: {'met' if case.batch / seconds >= TRAINING_GOAL else 'missed'}"
        return replace(
            row,
            images_per_second=round(case.batch / seconds, 1),
            milliseconds_per_step=round(1000 * seconds, 2),
            share_of_peak=round(flops / seconds / self._peak(case.precision), 3),
            goal=goal,
        )

    def _step(self, case: Case) -> TrainingStep:
        return TrainingStep(
            self.device,
            model=case.model,
            precision=case.precision,
            compile=case.compiled,
            memory_format=case.memory_format,
        )

    def _inference(self, step: TrainingStep, images: Tensor) -> Callable[[], object]:
        model = step.model.eval()
        embed = torch.compile(model.embed) if step.config.compile else model.embed
        images = images.contiguous(memory_format=step.memory_format)

        def run() -> Tensor:
            bfloat16 = step.computation.precision == "bfloat16"
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
                return embed(images)

        return run

    def _seconds(self, run: Callable[[], object]) -> float:
        """Return the seconds of a step: the median of five stretches, each queued as a whole and then awaited."""
        for _ in range(3):
            run()
        self._wait()
        start = time.perf_counter()
        run()
        self._wait()
        steps = max(1, round(self.plan.seconds / 5 / (time.perf_counter() - start)))
        stretches = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(steps):
                run()
            self._wait()
            stretches.append((time.perf_counter() - start) / steps)
        return statistics.median(stretches)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _peak(self, precision: str) -> float:
        """Return the FLOP/s that the device can do, by its data sheet or else as a large matrix product does them."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        if (known := data_sheet(name)) is not None:
            return known[PRECISIONS.index(precision)] * 1e12
        if precision not in self._peaks:
            side = 8192 if self.device.type == "cuda" else 256
            kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
            matrix = torch.randn(side, side, device=self.device, dtype=kind)
            with computing_in(precision):
                self._peaks[precision] = 2 * side**3 / self._seconds(lambda: matrix @ matrix)
        return self._peaks[precision]

    def _input_path(self, case: Case, row: Result) -> Result:
        """Train from photographs: workers, pixel cache and augmentation, against a batch that is already there."""
        step = self._step(case)
        transform = ImageTransform(step.model.encoder.preprocessing, AUGMENTATION, reduced_decoding=True)
        photographs = make_photographs(self.folder / "photographs", self.plan.photographs)
        dataset = ImageDataset(photographs, transform, PixelCache(self.folder / "pixels", 2**33))
        for index in range(len(dataset)):
            dataset[index, 0]  # fills the cache
        warm_up = 5 if self.device.type == "cuda" else 1
        numbers = itertools.cycle(range(len(dataset)))
        batches = [
            [(next(numbers), 1000 * number + place) for place in range(case.batch)]
            for number in range(warm_up + self.plan.steps_of_input)
        ]
        loader = DataLoader(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]  (a list of lists does)
            num_workers=choose_workers("auto"),
            collate_fn=BatchCollator(transform, self.device),
            pin_memory=self.device.type == "cuda",
        )
        images, labels = step.batch(case.batch)
        with computing_in(case.precision):
            resident = self._seconds(lambda: step(images, labels))
            start = 0.0
            for number, batch in enumerate(loader):
                if number == warm_up:
                    self._wait()
                    start = time.perf_counter()
                step(to_images(batch, transform, self.device), batch.labels.to(self.device, non_blocking=True))
            self._wait()
        seconds = (time.perf_counter() - start) / self.plan.steps_of_input
        ratio = seconds / resident
        return replace(
            row,
            memory_format=step.computation.memory_format,
            images_per_second=round(case.batch / seconds, 1),
            milliseconds_per_step=round(1000 * seconds, 2),
            goal=f"at most {INPUT_GOAL}x: {'met' if ratio <= INPUT_GOAL else 'missed'}",
            note=f"{ratio:.3f}x the time of batches already there; {loader.num_workers} workers, cached pixels of "
            f"{len(dataset)} photographs of {WIDTH}x{HEIGHT}, augmented",
        )

    def _study(self, case: Case, row: Result) -> Result:
        """Run stage 1 and the loss variants of stage 2 of one aspect, with evaluation, comparison and report."""
        out = self.folder / "study"
        keys = {key: value for key, value in self.plan.study.items() if key != "model"}
        study = StudyConfig.model_validate(
            {
                "study": "benchmark",
                "models": {case.model: {"pretrained": "none"}},
                "data": [{"dataset": "synthetic", "aspect": "dorsal_r"}],
                "synthetic": self.plan.hands,
                "losses": {name: LOSSES[name] for name in self.plan.losses},
                "common": {"device": self.device.type, **keys},
                "stage1": {"experiment": "stage1"},
                "stage2": {"experiment": "stage2"},
            }
        )
        hands = generate(out / SYNTHETIC_HANDS, SyntheticHands(**study.synthetic.model_dump()))
        enlarge(hands, "dorsal right")
        start = time.perf_counter()
        result = run_study(study, plan_study(study, out), out)
        seconds = time.perf_counter() - start
        result.raise_failures()
        trained = [report.training for report in result.reports if report.training is not None]
        return replace(
            row,
            precision=trained[0].precision,
            images_per_second=round(statistics.median(run.images_per_second for run in trained), 1),
            goal=f"under {STUDY_GOAL_SECONDS:.0f} s: {'met' if seconds < STUDY_GOAL_SECONDS else 'missed'}"
            if self.plan is FULL
            else "",
            note=f"the whole study in {seconds:.0f} s: {len(trained)} runs of {trained[0].epochs} epochs "
            f"({sum(run.seconds for run in trained):.0f} s of training) on photographs of {WIDTH}x{HEIGHT}, each with "
            "its evaluation of ten draws, the comparison and the report; photographs are drawn before",
        )


class TimeOut(BaseException):
    """A row took longer than it may. Like Ctrl-C, nothing between may take it for a fault of its own."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `TimeOut` in the block after so many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeOut

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def data_sheet(name: str) -> tuple[float, float, float] | None:
    """Return the `PEAKS` of a GPU by its name; None where it is not among them."""
    if "Laptop" in name:  # a slower chip under the same name
        return None
    return next((peaks for known, peaks in PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def make_photographs(folder: Path, count: int) -> list[LabelledImage]:
    """Write large JPEG files, once; what they show does not matter for speed."""
    folder.mkdir(exist_ok=True)
    images = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        if not path.exists():
            coarse = np.random.default_rng(number).integers(0, 256, (150, 200, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, quality=90)
        images.append(LabelledImage(path, hashlib.sha256(path.read_bytes()).hexdigest(), number % 8))
    return images


def enlarge(hands: Path, aspect: str) -> None:
    """Make the photographs of one aspect as large as those of 11k Hands.

    To draw them that large would take longer than the study; to decode them takes as long as if they were drawn so.
    """
    with (hands / "HandInfo.csv").open(encoding="utf-8", newline="") as file:
        paths = [hands / "Hands" / row["imageName"] for row in csv.DictReader(file) if row["aspectOfHand"] == aspect]
    with ThreadPoolExecutor(available_cores()) as pool:  # Pillow lets go of the interpreter meanwhile
        list(pool.map(_enlarge, paths))


def _enlarge(path: Path) -> None:
    with Image.open(path) as image:
        large = image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    large.save(path, quality=85)


def facts(device: torch.device) -> dict[str, str]:
    """Return hardware and versions."""
    found = {"date": datetime.now(UTC).date().isoformat(), **harness.machine()}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
        found["cudnn"] = str(torch.backends.cudnn.version())
        found["processor"], found["host"] = found["gpu"], found["processor"]
    return found | {"system": platform.platform()}


def write(results: list[Result], known: dict[str, str], left: int, out: Path) -> Path:
    """Write all rows as Markdown and CSV; return the Markdown file."""
    names = [field.name for field in fields(Result)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names, *known], lineterminator="\n")
    writer.writeheader()
    for result in results:
        writer.writerow({**asdict(result), **known})
    path = out / harness.file_stem(known, prefix="gpu" if "gpu" in known else "cpu_by_gpu_script")
    write_text(path.with_name(path.name + ".csv"), text.getvalue())
    heads = [name.replace("_", " ") for name in names]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(_cell(value) for value in asdict(result).values()) + " |" for result in results]
    described = "; ".join(f"{name} {value}" for name, value in known.items())
    rest = f"\n{left} further cases were not reached within the time given.\n" if left else ""
    markdown = path.with_name(path.name + ".md")
    write_text(markdown, f"# Speed on {known['processor']}\n\n{described}.\n\n" + "\n".join(lines) + "\n" + rest)
    return markdown


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value).replace("|", "/").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed on a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--budget", type=float, default=1500, help="seconds for everything")
    parser.add_argument("--row-limit", type=float, default=180, help="seconds for a row, the study's excepted")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models and few steps: tries every code path")
    options = parser.parse_args()
    start = time.perf_counter()
    device = choose_device(options.device)
    plan = QUICK if options.quick else FULL
    known, results, path = facts(device), [], None
    to_do = list(cases(plan))
    with tempfile.TemporaryDirectory(prefix="handclip_gpu_") as folder:
        bench = Bench(device, plan, Path(folder))
        os.environ["XDG_CACHE_HOME"] = folder  # the study's pixels are not what the user's cache is for
        for number, case in enumerate(to_do):
            left = options.budget - (time.perf_counter() - start)
            if left < 5:
                break
            began = time.perf_counter()
            try:
                with limited(left if case.work == "study" else min(left, options.row_limit)):
                    result = bench.measure(case)
            except TimeOut:
                result = Result(**asdict(case), note=f"stopped after {time.perf_counter() - began:.0f} s")
            except Exception as error:  # one row's fault must not cost the others
                result = Result(**asdict(case), note=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            results.append(result)
            speed = f"{result.images_per_second:,} images/s" if result.images_per_second is not None else ""
            print(
                f"[{number + 1}/{len(to_do)}] {case}: {speed} {result.goal} {result.note}", file=sys.stderr, flush=True
            )
            path = write(results, known, len(to_do) - len(results), options.out)
            torch.compiler.reset()
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if path is not None:
        print(path.read_text(encoding="utf-8"))
    print(f"{len(results)} of {len(to_do)} rows; {available_cores()} cores; {path}")


if __name__ == "__main__":
    main()
