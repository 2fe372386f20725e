"""Kill work just before the changes that it makes to the disk: the moments between two files that belong together.

The command counts its own calls of the functions below, not those of processes that it has started, and is killed
before the k-th of them; the same command again must end as if nothing had happened. What is being written to a file
under a temporary name is not counted: moments drawn at random fall into that often enough.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

CHANGES = ("replace", "rename", "unlink", "remove", "rmdir", "fsync")
"""Functions of `os` that change which files there are, or that end the writing of one.

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
