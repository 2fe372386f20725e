"""How much of the machine may be used."""

import os
import sys

from handclip.errors import ConfigError


def available_cores() -> int:
    """Return the cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_sharing_cores() -> int:
    """Return how many processes of one run share these cores; `torchrun` says so, as does HandCLIP itself.

    Raises:
        ConfigError: the environment variable that tells it does not hold a number from 1 up.
    """
    value = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(
            f"LOCAL_WORLD_SIZE: the environment variable must be how many processes run on this machine, "
            f"got {value!r}. torchrun sets it; without torchrun, unset it."
        )
    return int(value)


def free_shared_memory() -> int | None:
    """Return how many bytes of shared memory are free; None where the system does not set them apart.

    Containers have little of it: docker's 64 MiB, for one.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except OSError:  # without this folder, Linux shares none
        return 0
    return status.f_bavail * status.f_frsize if status.f_blocks else None  # none at all: it is as large as it likes


_SHARED_MEMORY = "/dev/shm"
