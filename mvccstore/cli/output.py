"""What commands print: JSON, lines for pipes, tables for people, and progress.

Whether a person reads is whether stdout is a terminal. What goes through a pipe is UTF-8 bytes whatever the
locale says, with no colours, no header and nothing cut off. Progress goes to stderr, if that is a terminal.

Nothing from a store is ever taken for markup or sent to a terminal raw: rich gets `Text` objects only, made
from escaped text.
"""

from __future__ import annotations

import codecs
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import click

import mvccstore
from mvccstore.cli.keys import escaped, json_bytes

LINES_AT_ONCE = 512
TABLE_ROWS_AT_ONCE = 200
PREVIEW_BYTES = 400
BAR_AFTER_SECONDS = 0.4
KEY_WIDTH_MIN = 16

Progress = Callable[[int, int], None]
JsonValue = str | int | float | bool | None | Sequence["JsonValue"] | dict[str, "JsonValue"]


class Column(NamedTuple):
    """A column of a table."""

    title: str
    is_number: bool = False
    is_flexible: bool = False
    """Whether its cells are cut where the terminal is too narrow: in the middle; if it is the last column, at the end."""


def on_terminal() -> bool:
    """Whether a person reads what is printed."""
    return sys.stdout.isatty()


def emit(text: str) -> None:
    """Print a line, as UTF-8."""
    click.echo(text.encode("utf-8", "surrogateescape"))


def emit_lines(lines: Iterable[str]) -> None:
    """Print lines, many at once."""
    remaining = iter(lines)
    while batch := list(islice(remaining, LINES_AT_ONCE)):
        emit("\n".join(batch))


def as_json(value: object) -> str:
    """Return a value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False)


def emit_json(value: object) -> None:
    """Print a value as one line of JSON."""
    emit(as_json(value))


def row_json(kv: mvccstore.KeyValue) -> dict[str, JsonValue]:
    """Return a key as it appears in JSON everywhere."""
    return {
        **json_bytes("key", kv.key),
        **json_bytes("value", kv.value),
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "version": kv.version,
        "lease": kv.lease,
    }


def event_json(event: mvccstore.Event) -> dict[str, JsonValue]:
    """Return a change as it appears in JSON everywhere."""
    shown: dict[str, JsonValue] = {"type": event.type, "revision": event.revision}
    if event.type == "put":
        shown |= row_json(event.kv)
    else:
        shown |= json_bytes("key", event.kv.key)
    if event.prev_kv is not None:
        shown["prev_kv"] = row_json(event.prev_kv)
    return shown


def human_bytes(size: int) -> str:
    """Return a size with a unit.

    >>> human_bytes(999), human_bytes(1536), human_bytes(5 << 30)
    ('999 B', '1.5 KiB', '5.0 GiB')
    """
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def plural(number: int, noun: str) -> str:
    """Return a number and its noun.

    >>> plural(1, "key"), plural(1200, "key")
    ('1 key', '1,200 keys')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def preview(value: bytes) -> str:
    """Return the beginning of a value, on one line."""
    # A decoder that waits for more leaves a character out that was cut in two.
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(value[:PREVIEW_BYTES])
    return escaped(text.encode("utf-8", "surrogateescape"), backslash="\\")


def shorten(text: str, width: int, *, is_end_cut: bool = False) -> str:
    """Cut the middle out of a text that is wider than `width` cells (of a key, the end says most), or its end off.

    >>> shorten("jobs/2024/november/report.txt", 20)
    'jobs/2024...port.txt'
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    if width <= 5:
        return set_cell_size(text, width).rstrip()
    tail_cells = 0 if is_end_cut else (width - 3) // 2
    tail = ""
    for character in reversed(text):
        if cell_len(character + tail) > tail_cells:
            break
        tail = character + tail
    head = set_cell_size(text, width - 3 - cell_len(tail)).rstrip()
    return f"{head}...{tail}"


class Table:
    """A table that is printed while its rows come in, a screenful or so at a time."""

    def __init__(self, columns: Sequence[Column]) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
        self._columns = columns
        self._widths = [len(column.title) for column in columns]
        self._has_header = True

    def print(self, rows: Iterable[Sequence[str]]) -> int:
        """Print rows; return how many."""
        count = 0
        remaining = iter(rows)
        while batch := list(islice(remaining, TABLE_ROWS_AT_ONCE)):
            self._print_batch(batch)
            count += len(batch)
        return count

    def _print_batch(self, rows: list[Sequence[str]]) -> None:
        from rich.table import Table as RichTable
        from rich.text import Text

        self._fit(rows)
        table = RichTable(box=None, padding=(0, 2, 0, 0), show_header=self._has_header, header_style="bold")
        self._has_header = False
        for column, width in zip(self._columns, self._widths, strict=True):
            table.add_column(column.title, justify="right" if column.is_number else "left", width=width, no_wrap=True)
        for *cells, last in rows:
            cut = [shorten(cell, width) for cell, width in zip(cells, self._widths, strict=False)]
            table.add_row(*map(Text, cut), Text(shorten(last, self._widths[-1], is_end_cut=True)))
        self._console.print(table)

    def _fit(self, rows: list[Sequence[str]]) -> None:
        """Give every column what it needs; if that is too much, the flexible ones share what is left."""
        from rich.cells import cell_len

        needed = [max(width, *(cell_len(row[i]) for row in rows)) for i, width in enumerate(self._widths)]
        flexible = [i for i, column in enumerate(self._columns) if column.is_flexible]
        fixed = sum(width for i, width in enumerate(needed) if i not in flexible) + 2 * len(needed)
        free = max(self._console.width - fixed, KEY_WIDTH_MIN)
        for i in flexible[:-1]:  # keys go before values, but leave them a third
            needed[i] = min(needed[i], max(free * 2 // 3, free - needed[flexible[-1]]))
            free -= needed[i]
        if flexible:
            needed[flexible[-1]] = min(needed[flexible[-1]], max(free, len(self._columns[flexible[-1]].title)))
        self._widths = needed


def show_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns; with a tab between them in a pipe."""
    if on_terminal():
        width = max(len(name) for name, _ in facts)
        emit_lines(f"{name:<{width}}  {value}" for name, value in facts)
    else:
        emit_lines(f"{name}\t{value}" for name, value in facts)


@contextmanager
def progress_bar(title: str, unit: str, *, is_bytes: bool = False, is_wanted: bool = True) -> Iterator[Progress]:
    """Show progress on stderr while the block runs; the block calls what it gets with done and total (0: unknown)."""
    if not is_wanted or not sys.stderr.isatty():
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    bar = Bar(*columns, console=console, transient=True)
    task = bar.add_task(title, total=None, amount="")

    def report(done: int, total: int) -> None:
        amount = human_bytes(done) if is_bytes else f"{done:,}"
        if total:
            amount += f" of {human_bytes(total) if is_bytes else f'{total:,}'}"
        bar.update(task, completed=done, total=total or None, amount=f"{amount} {'' if is_bytes else unit}")

    # By a timer and not by the first report, because some work reports nothing until it is done.
    starter = threading.Timer(BAR_AFTER_SECONDS, bar.start)
    starter.start()
    try:
        yield report
    finally:
        starter.cancel()
        starter.join()
        bar.stop()


def _nothing(_done: int, _total: int) -> None:
    pass
