"""How much of the machine may be used."""

import os


def available_cores() -> int:
    """Return the cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_sharing_cores() -> int:
    """Return how many processes of one run share these cores; `torchrun` says so, as does HandCLIP itself."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
