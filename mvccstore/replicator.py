"""What may decide when a command is applied.

A module of its own, as it stays Python where its neighbours are compiled: who derives from it is none of ours, and what
is not compiled can derive from no protocol that is.
"""

from __future__ import annotations

from typing import Protocol

from mvccstore.types import Command, Result


class Replicator(Protocol):
    """Decides when a command may be applied.

    The built-in one says "now". One that replicates sends the command's bytes (`codec.pack_command`) away,
    and when a quorum has them lets the store apply them through `Store.apply_replicated`, in the same order
    everywhere.
    """

    def propose(self, command: Command) -> Result:
        """Return the command's result once it has been applied and committed here.

        Raises:
            StoreError: What applying it raised.
            ReplicationError: It was not replicated, or nobody can tell.
        """
        ...

    def close(self) -> None:
        """Refuse what comes, and wait for what is under way."""
        ...
