"""Kill work just before each change that it makes to the disk, one after the other: no moment is left to chance.

The command that is killed counts its own calls of the functions below. Killed before the k-th of them, it has left
exactly what a power cut there would leave, and the same command again must end as if nothing had happened.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

CHANGES = ("replace", "rename", "unlink", "remove", "rmdir", "fsync")
"""Functions of `os` that change what a folder holds, or that end the writing of a file.

Folders that are made are left out: they are empty until the next of these.
"""


def kill_before(number: int) -> None:
    """Have this process, not those that it starts, killed before its call of this number."""
    owner, left = os.getpid(), number

    def counting(change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if os.getpid() == owner:
                left -= 1
                if left == 0:
                    os.kill(owner, signal.SIGKILL)
            return change(*arguments, **options)

        return counted

    for name in CHANGES:
        setattr(os, name, counting(getattr(os, name)))
