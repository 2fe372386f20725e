"""What Lightning is told of processes that have found each other before it came."""

from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from handclip.parallel.processes import current


class JoinedProcesses(LightningEnvironment):
    """Lightning starts no process, and takes the numbers of those there are from `current`."""

    @property
    def creates_processes_externally(self) -> bool:
        """Whether Lightning has nothing to start."""
        return True

    def global_rank(self) -> int:
        """Return the number of this process; the first one writes."""
        return current().rank

    def set_global_rank(self, rank: int) -> None:
        """Keep the number: Lightning's own count is wrong where a launcher deals out processes machine by machine."""

    def world_size(self) -> int:
        """Return how many processes there are."""
        return current().size

    def set_world_size(self, size: int) -> None:
        """Keep the number."""

    def local_rank(self) -> int:
        """Return the number of this process on its machine."""
        return current().local_rank

    def teardown(self) -> None:
        """Leave the environment variables of whoever has started the processes as they are."""
