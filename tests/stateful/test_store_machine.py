"""The store against the model, on every engine. The work is in `tests.stateful.machine`."""

from __future__ import annotations

from hypothesis import settings

from tests.stateful.machine import JournaledMachine, LmdbMachine, SqliteMachine, StoreMachine

TestStoreInMemory = StoreMachine.TestCase
TestStoreOnLmdb = LmdbMachine.TestCase
TestStoreOnSqlite = SqliteMachine.TestCase
TestStoreBehindJournal = JournaledMachine.TestCase

_SETTINGS = settings(stateful_step_count=35 if settings().max_examples <= 50 else 60)
TestStoreInMemory.settings = TestStoreOnLmdb.settings = _SETTINGS
TestStoreOnSqlite.settings = TestStoreBehindJournal.settings = _SETTINGS
