"""Starting the processes that share a run, or finding that `torchrun` or SLURM has started them.

Training and evaluation are called as usual, in one process. Where their config asks for several devices, that process
starts one for each, waits, and returns what the first of them returns. In processes that `torchrun` or `srun` has
started, nothing more is started: each takes its part.
"""

import logging
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException, start_processes

from handclip.config.experiment import ExperimentConfig
from handclip.console import ConsoleHandler
from handclip.cores import available_cores
from handclip.errors import ConfigError, HandCLIPError, Interrupted
from handclip.parallel.hardware import choose_device
from handclip.parallel.processes import Processes, current, joined
from handclip.plurals import counted

T = TypeVar("T")

_GRACE = 5.0
"""Seconds that processes have to end by themselves once the run has failed or was interrupted."""


def on_devices(function: Callable[..., T], config: ExperimentConfig, **options: Any) -> T:
    """Call `function(config, **options)` in one process for each device that the config asks for.

    Args:
        function: a function of a module; with several devices it is called in each process, which `current` tells
            apart.
        config: says which devices.
        options: further arguments.

    Returns:
        What it returns; with several processes started here, what it returns in the first.

    Raises:
        HandCLIPError: the first that a process raised, or the devices asked for are not there.
    """
    if current().size > 1:
        return function(config, **options)
    if (started := launched()) is not None:
        return _take_part(started, function, config, options)
    count = _devices_of_a_machine(config, None)
    return function(config, **options) if count == 1 else _start(count, function, config, options)


def starts_processes(config: ExperimentConfig) -> bool:
    """Whether `on_devices` has other processes to start."""
    return current().size == 1 and launched() is None and _devices_of_a_machine(config, None) > 1


def launched() -> Processes | None:
    """Return this process among those that `torchrun` or `srun` has started; None where it was started by itself.

    Raises:
        ConfigError: not every machine has as many, or a variable that they set holds no number.
    """
    variables = os.environ
    if "TORCHELASTIC_RUN_ID" in variables:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        processes = Processes(*map(_number_of_launcher, names))
    elif "SLURM_STEP_NUM_TASKS" in variables:  # set by srun only, and not in a batch script itself
        rank, size, local_rank, nodes = (
            _number_of_launcher(name)
            for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES")
        )
        # "2(x3)" is two on each of three machines, "2,1" is not as many on each.
        if nodes == 0 or size % nodes or "," in variables.get("SLURM_STEP_TASKS_PER_NODE", ""):
            raise ConfigError(
                f"srun has started {size} processes on {nodes} machines, and not as many on each; say how many each is "
                "to have by --ntasks-per-node"
            )
        processes = Processes(rank, size, local_rank, size // nodes)
    else:
        return None
    return processes if processes.size > 1 else None


def is_first_launched() -> bool:
    """Whether this process speaks for all that `torchrun` or `srun` has started."""
    started = launched()
    return started is None or started.rank == 0


def refuse_launcher(what: str) -> None:
    """Check that what would do the same work in every process is not started by `torchrun` or `srun`.

    Raises:
        ConfigError: it is.
    """
    if launched() is not None:
        raise ConfigError(
            f"{what} cannot be started by torchrun or srun, which share out train and evaluate only. Start it by "
            "itself, with devices in its file: it then starts as many processes as there are devices on this machine"
        )


def _devices_of_a_machine(config: ExperimentConfig, started: Processes | None) -> int:
    """Return how many processes each machine has, after checking that they can be had."""
    kind = choose_device(config.device).type
    present = torch.cuda.device_count() if kind == "cuda" else 1
    if config.devices != "auto":
        count = config.devices
    elif started is not None:
        count = started.local_size
    else:
        count = present if config.device in ("auto", "cuda") else 1
    if count > 1 and config.device.startswith("cuda:"):
        raise ConfigError(
            f"devices: {count} do not go with device: {config.device}, which is one; choose among this machine's GPUs "
            "with the environment variable CUDA_VISIBLE_DEVICES"
        )
    if count > 1 and kind == "mps":
        raise ConfigError(f"devices: {count}: a Mac has one GPU; use 1, or device: cpu")
    if kind == "cuda" and count > present:
        raise ConfigError(f"devices: {count}: this machine has {counted(present, 'CUDA device')}")
    if started is not None and (started.local_size, started.nodes) != (count, config.num_nodes):
        raise ConfigError(
            f"devices: {config.devices} and num_nodes: {config.num_nodes} do not fit the {started.size} processes on "
            f"{started.nodes} machine(s) that were started; add --set devices={started.local_size} "
            f"--set num_nodes={started.nodes}"
        )
    if started is None and config.num_nodes > 1:
        raise ConfigError(
            f"num_nodes: {config.num_nodes}: start it on each machine by torchrun --nnodes {config.num_nodes} "
            f"--nproc-per-node {count} --rdzv-backend c10d --rdzv-endpoint HOST:29500 --no-python handclip ..., or "
            "once by srun; see docs/many_devices.md"
        )
    return count


def _take_part(own: Processes, function: Callable[..., T], config: ExperimentConfig, options: dict[str, Any]) -> T:
    """Be one of the processes that a launcher has started."""
    try:
        _devices_of_a_machine(config, own)
        if "TORCHELASTIC_RUN_ID" not in os.environ and "MASTER_ADDR" not in os.environ:
            os.environ.update(_slurm_meeting_point())
        with joined(own, "env://", choose_device(config.device).type):
            return function(config, **options)
    except Exception as error:
        # Mostly all raise the same HandCLIPError, and the launcher ends the others once the first has said it; or
        # another process has failed, and has more to say.
        if own.rank or not isinstance(error, HandCLIPError):
            time.sleep(_GRACE)
        raise


def _slurm_meeting_point() -> dict[str, str]:
    """Name the first machine of the job, and a port that follows from its number."""
    # The list is written as `node[01-03,07],other`.
    first = re.sub(r"\[(\d+)[^]]*\]", r"\1", os.environ["SLURM_STEP_NODELIST"]).split(",")[0]
    return {"MASTER_ADDR": first, "MASTER_PORT": str(15000 + _number_of_launcher("SLURM_JOB_ID") % 10000)}


def _number_of_launcher(name: str) -> int:
    """Return a number that `torchrun` or `srun` has put into the environment."""
    value = os.environ.get(name)
    if value is None or not value.isdecimal():
        state = f"is {value!r}, which is no number" if value is not None else "is not set"
        raise ConfigError(
            f"{name}: the environment variable {state}, although others say that torchrun or srun has started this "
            "process. Start it by one of them, or unset their variables"
        )
    return int(value)


@dataclass(frozen=True)
class _Outlook:
    """How the processes started here find each other, share the cores and log, and where each leaves its outcome."""

    folder: Path
    count: int
    device_type: str
    threads: int
    log_level: int
    to_console: bool

    def outcome_of(self, rank: int) -> Path:
        """Return the file for what the first process returns, or for the error that a process raises."""
        return self.folder / f"outcome_{rank}"


def _start(count: int, function: Callable[..., T], config: ExperimentConfig, options: dict[str, Any]) -> T:
    """Start processes on this machine, wait for them, and return what the first one returns."""
    log = logging.getLogger("handclip")
    others = set(multiprocessing.active_children())
    with tempfile.TemporaryDirectory(prefix="handclip_") as folder:
        outlook = _Outlook(
            Path(folder),
            count,
            choose_device(config.device).type,
            max(1, min(torch.get_num_threads(), available_cores() // count)),
            log.getEffectiveLevel(),
            any(isinstance(handler, ConsoleHandler) for handler in log.handlers),
        )
        # That it ends those that are left is no news to whoever is told why.
        logging.getLogger(start_processes.__module__).setLevel(logging.ERROR)
        try:
            # Spawned, as CUDA does not survive a fork.
            started = start_processes(_run, (outlook, function, config, options), count, join=False)  # type: ignore[no-untyped-call]
            while not started.join(grace_period=_GRACE):
                pass
        except ProcessException as failure:
            raise _what_failed(failure, outlook) from None
        finally:
            _end(set(multiprocessing.active_children()) - others)
        result: T = pickle.loads(outlook.outcome_of(0).read_bytes())
        return result


def _what_failed(failure: ProcessException, outlook: _Outlook) -> Exception:
    """Return the error that a process has raised; where one has only lost its company, that of the other."""
    raised = [outlook.outcome_of(rank) for rank in (failure.error_index, *range(outlook.count))]
    for outcome in (pickle.loads(path.read_bytes()) for path in raised if path.exists()):
        if isinstance(outcome, HandCLIPError):
            return outcome
    name = f"process {failure.error_index + 1} of {outlook.count}"
    _, _, raised_there = failure.msg.partition(":\n")
    if not isinstance(failure, ProcessExitedException):
        return RuntimeError(f"{name} failed:\n{raised_there}")
    code = failure.exit_code
    if code < 0 or code > 128:  # the latter where it has answered the signal itself
        return HandCLIPError(f"{name} was ended from outside (exit code {code}), for want of memory, perhaps")
    return HandCLIPError(
        f"{name} ended (exit code {code}) before it could say why; what it printed stands above. A script that asks "
        'for several devices must do so below `if __name__ == "__main__":`, as each process imports it'
    )


def _end(processes: Iterable[BaseProcess]) -> None:
    """End what still runs: let it tidy up, but not for long."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()


def _run(
    rank: int, outlook: _Outlook, function: Callable[..., Any], config: ExperimentConfig, options: dict[str, Any]
) -> None:
    """Be one of the processes that `_start` has started."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    own = Processes(rank, outlook.count, rank, outlook.count)
    # Ctrl-C and SIGHUP reach every process of a terminal; the one that waits passes them on as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["LOCAL_WORLD_SIZE"] = str(own.size)  # see `processes_sharing_cores`
    if outlook.device_type == "cpu":
        torch.set_num_threads(outlook.threads)
    log = logging.getLogger("handclip")
    log.setLevel(outlook.log_level)
    if outlook.to_console:
        log.handlers = [ConsoleHandler()]
    try:
        with joined(own, f"file://{outlook.folder / 'meeting_point'}", outlook.device_type):
            outcome = function(config, **options)
        if rank == 0:
            # Not through torch's own pickler, which would have a tensor's memory shared, and end with this process.
            outlook.outcome_of(rank).write_bytes(pickle.dumps(outcome))
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    except HandCLIPError as error:
        outlook.outcome_of(rank).write_bytes(pickle.dumps(error))
        raise


def _end_with_parent() -> None:
    """Leave no process behind where the one that waits for it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
