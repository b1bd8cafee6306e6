"""Commands that write: put, del, txn."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

import mvccstore
from mvccstore.cli import txn_json
from mvccstore.cli.keys import coding_options, escaped, key_of, keys_of, shown_key, span_options
from mvccstore.cli.output import emit, emit_json, emit_lines, on_terminal, plural, row_json
from mvccstore.cli.session import (
    EXIT_NOT_FOUND,
    KEY,
    DurabilityName,
    StoreCommand,
    common_options,
    creation_options,
    durability_option,
    not_found,
    open_for_writing,
    wants_json,
)


@click.command(cls=StoreCommand, short_help="Set a key.")
@click.argument("key", type=KEY)
@click.argument("value", required=False)
@click.option("--file", "-f", "file", type=click.File("rb"), help="Take the value from a file; - for stdin.")
@click.option("--lease", type=click.IntRange(min=0), default=0, metavar="ID", help="Attach the key to this lease.")
@click.option("--keep-lease", is_flag=True, help="Leave the key attached to the lease it has.")
@click.option("--prev-kv", is_flag=True, help="JSON: also the key as it was before.")
@coding_options
@creation_options
@common_options
def put(
    key: str,
    value: str | None,
    file: BinaryIO | None,
    lease: int,
    keep_lease: bool,
    prev_kv: bool,
    coding: str | None,
    engine: str | None,
    durability: DurabilityName,
) -> None:
    """Set KEY to VALUE, and print the revision that did it. Makes the store if there is none.

    VALUE is text; - takes the value from stdin, byte for byte, as --file does from a file. A VALUE that begins
    with a dash goes after two dashes: mvccstore put KEY -- -5

    JSON: one object with revision; with --prev-kv also prev_kv, the key as it was or null.
    """
    wanted = key_of(key, coding)
    data = _value(value, file)
    if lease and keep_lease:
        msg = "--lease and --keep-lease exclude each other"
        raise click.UsageError(msg)
    with open_for_writing(engine=engine, durability=durability) as store:
        result = store.put(wanted, data, lease=lease, ignore_lease=keep_lease, prev_kv=True)
    if wants_json():
        before = {"prev_kv": _row_or_null(result.prev_kv)} if prev_kv else {}
        emit_json({"revision": result.revision, **before})
    else:
        emit(f"revision {result.revision}" if on_terminal() else str(result.revision))


def _value(value: str | None, file: BinaryIO | None) -> bytes:
    if value is not None and file is not None:
        msg = "give VALUE or --file, not both"
        raise click.UsageError(msg)
    if file is not None:
        return file.read()
    if value is None:
        msg = "no value: give VALUE, --file FILE, or - for stdin (an empty value is '')"
        raise click.UsageError(msg)
    if value == "-":
        return sys.stdin.buffer.read()
    return value.encode("utf-8", "surrogateescape")


def _row_or_null(kv: mvccstore.KeyValue | None) -> object:
    return None if kv is None else row_json(kv)


@click.command("del", cls=StoreCommand, short_help="Delete a key, or many.")
@click.argument("key", type=KEY)
@click.argument("end", required=False, type=KEY)
@span_options
@click.option("--prev-kv", is_flag=True, help="JSON: also the keys as they were.")
@coding_options
@durability_option
@common_options
def delete(
    key: str,
    end: str | None,
    prefix: bool,
    from_key: bool,
    prev_kv: bool,
    coding: str | None,
    durability: DurabilityName,
) -> None:
    """Delete KEY, or the keys from KEY up to END, all in one revision, and print how many there were.

    History stays, until it is compacted: `get KEY --at REVISION` still reads what was deleted.

    JSON: one object with revision, deleted (how many); with --prev-kv also prev_kvs, a list.

    Exit code 1 if there was nothing to delete.
    """
    keys = keys_of(key, end, coding=coding, from_key=from_key, prefix=prefix)
    with open_for_writing(create=False, durability=durability) as store:
        if prev_kv:
            result = store.delete(keys, prev_kv=True)
        else:
            with store.begin() as txn:
                deleted = txn.delete(keys)
            result = mvccstore.DeleteResult(store.revision, deleted)
    if wants_json():
        before = {"prev_kvs": list(map(row_json, result.prev_kvs))} if prev_kv else {}
        emit_json({"revision": result.revision, "deleted": result.deleted, **before})
    elif on_terminal():
        emit(f"{plural(result.deleted, 'key')} deleted, revision {result.revision}")
    else:
        emit(str(result.deleted))
    if not result.deleted:
        not_found(f"nothing to delete: no key {escaped(key.encode('utf-8', 'surrogateescape'))}{_and_on(keys)}")


def _and_on(keys: mvccstore.Keys) -> str:
    return " in that range" if isinstance(keys, mvccstore.KeyRange) else ""


@click.command(cls=StoreCommand, epilog=txn_json.HELP, short_help="Run a transaction that is given as JSON.")
@click.argument("file", type=click.File("rb"), default="-")
@creation_options
@common_options
def txn(file: BinaryIO, engine: str | None, durability: DurabilityName) -> None:
    """Run a transaction: compares, what to do if all hold, what to do if not; one atomic step.

    FILE holds it as JSON; without FILE, or with -, it is read from stdin. Makes the store if there is none.

    JSON: one object with succeeded (whether the compares held), revision, and responses, one for each operation
    that ran: {"put": {revision, prev_kv}}, {"delete": {revision, deleted, prev_kvs}},
    {"range": {revision, count, more, kvs}}, {"txn": {succeeded, revision, responses}}.

    Exit code 1 if a compare did not hold (the failure branch, if any, has then run).
    """
    if file.isatty():
        click.echo("Reading the transaction from the terminal; end it with Ctrl-D.", err=True)
    try:
        request = txn_json.parse(file.read())
    except ValueError as error:
        msg = f"the transaction: {error}"
        raise click.UsageError(msg) from error
    with open_for_writing(engine=engine, durability=durability) as store:
        result = store.txn(compare=request.compare, success=request.success, failure=request.failure)
    if wants_json():
        emit_json(txn_json.result_json(result))
    else:
        emit_lines(_result_lines(result))
    if not result.succeeded:
        sys.exit(EXIT_NOT_FOUND)


def _result_lines(result: mvccstore.TxnResult) -> list[str]:
    lines = [f"{'succeeded' if result.succeeded else 'failed'}, revision {result.revision}"]
    for response in result.responses:
        match response:
            case mvccstore.PutResult():
                lines.append("put")
            case mvccstore.DeleteResult():
                lines.append(f"delete: {plural(response.deleted, 'key')}")
            case mvccstore.RangeResult():
                lines.append(f"range: {plural(response.count, 'key')}")
                lines += (f"  {shown_key(kv.key, None)}\t{escaped(kv.value)}" for kv in response.kvs)
            case mvccstore.TxnResult():
                lines += (f"  {line}" for line in _result_lines(response))
    return lines
