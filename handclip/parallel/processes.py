"""The processes that share a run, one a device, and what they tell each other.

A process by itself is the first and only one: every function here then returns at once, and nothing is exchanged.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx, once_differentiable
from torch.nn.parallel import DistributedDataParallel

from handclip import console
from handclip.errors import HandCLIPError
from handclip.parallel.hardware import choose_device

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)
"""The longest that one process works (reads the images of a data set, say) while the others wait for it."""


@dataclass(frozen=True)
class Processes:
    """This process among those that share a run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on its machine, which is that of its GPU."""
    local_size: int = 1
    """Processes on each machine."""

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size


_current = Processes()


def current() -> Processes:
    """Return this process among those that share the run that it is working on."""
    return _current


def is_first_process() -> bool:
    """Whether this is the process that writes files and speaks to people."""
    return _current.rank == 0


def own_device(device: str) -> torch.device:
    """Return the device of this process; see `choose_device`."""
    chosen = choose_device(device)
    return torch.device("cuda", _current.local_rank) if chosen.type == "cuda" and _current.size > 1 else chosen


@contextmanager
def joined(processes: Processes, meeting_point: str, device_type: str) -> Iterator[None]:
    """Share a run with other processes while the block runs; all but the first are silent.

    Args:
        processes: this process among them.
        meeting_point: where they find each other: torch's `init_method`.
        device_type: `cuda`, whose tensors travel by NCCL, or `cpu`, by gloo.
    """
    global _current
    cuda = device_type == "cuda"
    if cuda:
        torch.cuda.set_device(processes.local_rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=meeting_point,
        rank=processes.rank,
        world_size=processes.size,
        timeout=_PATIENCE,
    )
    _current = processes
    try:
        with _silence(processes.rank > 0):
            yield
        # Not after an error: the others may be waiting for this process, and it then would wait for them.
        dist.destroy_process_group()
    finally:
        _current = Processes()


def on_first(function: Callable[[], T]) -> T:
    """Call a function in the first process only; every process gets what it returns, or its HandCLIPError."""
    if _current.size == 1:
        return function()
    outcome: list[Any] = [None, None]
    if is_first_process():
        try:
            outcome[0] = function()
        except HandCLIPError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]  # type: ignore[no-any-return]


def first_before_others(function: Callable[[], T]) -> T:
    """Call a function in the first process, then in the others, which find what it has made (a file, say)."""
    made: list[T] = []
    on_first(lambda: made.append(function()))
    return made[0] if made else function()


def own_share(batches: Sequence[T]) -> Sequence[T]:
    """Return the batches that this process embeds: whole ones, so that none is made up of other images than alone."""
    return batches[_current.rank :: _current.size]


def combine(table: NDArray[np.float32]) -> None:
    """Fill in, in place, the rows that other processes have made; a row that this one has not made must be zero."""
    if _current.size > 1:
        # Sums of integers are exact: bit patterns arrive as they are, those of -0 and NaN too.
        dist.all_reduce(torch.from_numpy(table.view(np.int32)))


def share_gradients(module: nn.Module, device: torch.device) -> nn.Module:
    """Return what computes as a module does, and leaves the mean of all processes' gradients in its parameters."""
    # Buffers need no exchange: the statistics of synchronised batch norms are the same everywhere.
    return DistributedDataParallel(
        module, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def gather_rows(own: Tensor, lengths: Sequence[int]) -> Tensor:
    """Join the rows of all processes, in the order of their ranks, with a gradient for the own ones.

    Every process then computes the same loss L from the same rows, and so has dL/d(own rows) without asking the
    others. The encoder's gradient in one process would be the sum over ranks of dL/d(rows of the rank) times
    d(rows)/d(weights). DistributedDataParallel takes the mean over ranks, so the own rows' gradient is multiplied by
    their number here. Whatever stands behind the gathered rows (necks, classifiers, centres) gets its whole gradient
    in every process, and the mean of equals is the same.

    Args:
        own: (rows, D) or (rows,), of any type.
        lengths: rows of each process; `own` has `lengths[rank]`.
    """
    return _GatherRows.apply(own, lengths)  # type: ignore[no-any-return,no-untyped-call]


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor, lengths: Sequence[int]) -> Tensor:
        start = sum(lengths[: _current.rank])
        ctx.rows = slice(start, start + len(own))  # type: ignore[attr-defined]
        # What is exchanged must be as long in every process.
        padded = own.new_zeros((max(lengths), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.rows] * _current.size, None


@contextmanager
def _silence(silent: bool) -> Iterator[None]:
    if not silent:
        yield
        return
    logger, streams = logging.getLogger("handclip"), (console.stdout, console.stderr)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    for stream in streams:
        stream.quiet = True
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for stream in streams:
            stream.quiet = False
        logger.setLevel(level)
