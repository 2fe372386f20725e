"""What Lightning is told of processes that have found each other before it came."""

from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from handclip.engine.distributed import current


class JoinedProcesses(LightningEnvironment):
    """Lightning starts no process, and takes the numbers of those there are from `current`."""

    @property
    def creates_processes_externally(self) -> bool:
        """Whether Lightning has nothing to start."""
        return True

    def local_rank(self) -> int:
        """Return the number of this process on its machine."""
        return current().local_rank

    def node_rank(self) -> int:
        """Return the number of its machine."""
        return current().rank // current().local_size

    def teardown(self) -> None:
        """Leave the environment variables of whoever has started the processes as they are."""
