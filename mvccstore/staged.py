"""Commands that are applied but not committed, on their way from one thread to another.

A module of its own, as it stays Python where its neighbours are compiled: what is forgotten is noticed by a weak
reference, which objects of compiled classes do not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mvccstore.commit import Turn
from mvccstore.errors import StoreError
from mvccstore.mvcc.apply import Changes
from mvccstore.mvcc.state import State
from mvccstore.tables import MovableTxn
from mvccstore.types import Command, Result


@dataclass(eq=False, slots=True, weakref_slot=True)
class Staged:
    """Commands that were applied in a transaction which is not committed yet."""

    commands: Sequence[Command]
    turn: Turn
    txn: MovableTxn
    state: State
    changes: Changes
    answers: list[Result | StoreError]
