"""LMDB behind a journal as an engine of its own name, for tests that go through all engines; or for all that use LMDB."""

from __future__ import annotations

from dataclasses import replace

from mvccstore import EngineOptions, Store
from mvccstore.engine import register_engine
from mvccstore.engine.journaled import JournaledEngine, _carry, open_lmdb
from mvccstore.engine.lmdb import LmdbEngine

NAME = "journaled"


def open_journaled(options: EngineOptions) -> LmdbEngine | JournaledEngine:
    """Open an LMDB file, with a journal if it is opened for writing."""
    return open_lmdb(replace(options, journal=not options.read_only))


def have_journals() -> None:
    """Have every LMDB file that this process opens for writing behind a journal."""
    from mvccstore import engine

    register_engine("lmdb", open_journaled, recognizes=engine._is_lmdb)


def put_aside(engine: JournaledEngine) -> None:
    """Have the next commits go to a new layer, if there are not two already."""
    with engine._mutex:
        if engine._shown[0].layers[0].count and len(engine._shown[0].layers) == 1:
            engine._put_aside()


def carry_and_keep(engine: JournaledEngine) -> None:
    """Have the tables have the layer that was put aside, and that stay: what is so between two steps of the thread."""
    with engine._carrying:
        for layer in engine._shown[0].layers[1:]:
            _carry(engine.base, layer)


def kill(engine: JournaledEngine) -> None:
    """Leave what a process that is killed leaves: the files as they are, and no lock."""
    engine._is_ending = True
    engine._has_changed.set()
    engine._is_pressed.set()
    if engine._carrier is not None:
        engine._carrier.join()
    engine._is_closed = True
    for one in (engine._journal, engine._aside):
        one.close(is_done=False)
    engine.base.close()


def kill_store(store: Store, engine: JournaledEngine) -> None:
    """Leave of a store what a process that is killed leaves."""
    store._maintainer.stop()
    kill(engine)
    store._hub.close()
    store._committer.close()
    store._is_closed = True


register_engine(NAME, open_journaled)
