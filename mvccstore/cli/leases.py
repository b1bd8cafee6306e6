"""Commands about leases."""

from __future__ import annotations

import threading

import click

import mvccstore
from mvccstore.cli.keys import escaped, json_bytes
from mvccstore.cli.output import Column, Table, as_json, emit, emit_json, emit_lines, on_terminal, plural
from mvccstore.cli.session import (
    DurabilityName,
    StoreCommand,
    common_options,
    creation_options,
    durability_option,
    json_option,
    not_found,
    open_for_writing,
    store_option,
    wants_json,
)

_ID = click.IntRange(-(2**63), 2**63 - 1)
_TTL = click.FloatRange(min=0, min_open=True)


@click.group(short_help="Grant, list, show, keep alive and revoke leases.")
@store_option
@json_option
def lease() -> None:
    """Look after leases: keys put with one (put KEY VALUE --lease ID) are deleted when it ends.

    A lease ends by itself only while some program has the store open for writing: it counts the time, from the
    moment when it opens the store, which gives each lease its whole time again. In a file that nobody serves, no
    lease ends. Each of these commands opens the store for writing as long as it runs, so they do not work
    beside another writer, which alone knows what time is left.
    """


@lease.command(cls=StoreCommand, short_help="Create a lease.")
@click.argument("ttl", type=_TTL)
@click.option("--id", "lease_id", type=_ID, default=0, metavar="ID", help="Its number.  [default: one is chosen]")
@creation_options
@common_options
def grant(ttl: float, lease_id: int, engine: str | None, durability: DurabilityName) -> None:
    """Create a lease of TTL seconds, and print its id. Makes the store if there is none.

    JSON: one object with lease (its id) and ttl.
    """
    with open_for_writing(engine=engine, durability=durability) as store:
        try:
            made = store.grant(ttl, lease_id=lease_id)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        _show(made)


@lease.command(cls=StoreCommand, short_help="End a lease, and delete its keys.")
@click.argument("lease_id", metavar="ID", type=_ID)
@durability_option
@common_options
def revoke(lease_id: int, durability: DurabilityName) -> None:
    """End the lease ID now and delete its keys, as one revision; print how many there were.

    JSON: one object with lease, deleted (how many keys), and revision.

    Exit code 1 if there is no such lease.
    """
    with open_for_writing(create=False, durability=durability) as store:
        deleted = _found(store, lease_id).revoke()
        revision = store.revision
    if wants_json():
        emit_json({"lease": lease_id, "deleted": deleted, "revision": revision})
    else:
        emit(f"{plural(deleted, 'key')} deleted, revision {revision}" if on_terminal() else str(deleted))


@lease.command("list", cls=StoreCommand, short_help="List the leases.")
@common_options
def list_command() -> None:
    """List all leases, the shortest first. In a pipe, each is a line: id, seconds, number of keys.

    JSON: a line for each lease, with lease (its id), ttl in seconds, and keys (how many).
    """
    with open_for_writing(create=False) as store:
        rows = [(one.id, one.ttl, len(one.keys())) for one in store.leases()]
    if wants_json():
        emit_lines(as_json({"lease": lease_id, "ttl": ttl, "keys": keys}) for lease_id, ttl, keys in rows)
    elif on_terminal():
        table = Table([Column(title, is_number=True) for title in ("LEASE", "TTL", "KEYS")])
        table.print((str(lease_id), f"{ttl:,g}", f"{keys:,}") for lease_id, ttl, keys in rows)
    else:
        emit_lines(f"{lease_id}\t{ttl:g}\t{keys}" for lease_id, ttl, keys in rows)


@lease.command(cls=StoreCommand, short_help="Print the keys of a lease.")
@click.argument("lease_id", metavar="ID", type=_ID)
@common_options
def show(lease_id: int) -> None:
    """Print the keys that are attached to the lease ID, a line each, escaped as by `range`.

    JSON: one object with lease, ttl in seconds, and keys, a list of objects with key.

    Exit code 1 if there is no such lease.
    """
    with open_for_writing(create=False) as store:
        found = _found(store, lease_id)
        ttl, keys = found.ttl, found.keys()
    if wants_json():
        emit_json({"lease": lease_id, "ttl": ttl, "keys": [json_bytes("key", key) for key in keys]})
    else:
        emit_lines(map(escaped, keys))
        if on_terminal():
            click.secho(f"{plural(len(keys), 'key')}; {ttl:,g} seconds", dim=True)


@lease.command("keep-alive", cls=StoreCommand, short_help="Serve the store: keep a lease alive, let the others end.")
@click.argument("lease_id", metavar="ID", type=_ID)
@common_options
def keep_alive(lease_id: int) -> None:
    """Keep the lease ID alive until Ctrl-C, with the store open for writing.

    So time passes for all leases of the store meanwhile, and the others end when theirs is over. Prints the id
    and the seconds it has each time that it gives it them, three times in each such time.

    JSON: a line for each time, with lease and ttl.

    Exit code 1 if there is no such lease.
    """
    with open_for_writing(create=False) as store:
        found = _found(store, lease_id)
        pause = threading.Event()
        while True:
            ttl = found.keep_alive()
            _show(found)
            pause.wait(min(ttl / 3, threading.TIMEOUT_MAX))


def _found(store: mvccstore.Store, lease_id: int) -> mvccstore.Lease:
    try:
        return store.lease(lease_id)
    except mvccstore.LeaseNotFoundError:
        not_found(f"no lease {lease_id}")


def _show(one: mvccstore.Lease) -> None:
    if wants_json():
        emit_json({"lease": one.id, "ttl": one.ttl})
    elif on_terminal():
        emit(f"lease {one.id}, {one.ttl:,g} seconds")
    else:
        emit(str(one.id))
