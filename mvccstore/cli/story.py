"""The story that `mvccstore demo` tells, step by step, each with the calls it makes.

`Story` acts and claims, `Voice` prints and keeps account. A claim is checked against the files on disk or by
another call, never against what the store was remembered to say; a claim that fails makes the demo fail.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click

import mvccstore
from mvccstore.cli.keys import escaped
from mvccstore.cli.output import emit, human_bytes, on_terminal, plural, progress_bar
from mvccstore.cli.tree import TreeFile, files_below

FILE_BYTES_MAX = 128 << 10
"""Leaves out compiled libraries and bundled wheels: nobody edits those, and hashing them in Python takes long."""

FILES_A_TXN = 300
LISTED = 8
HISTORY_DIRECTORIES = (b"json/", b"logging/")
DELETED_DIRECTORIES = (b"idlelib/", b"encodings/")
ADDED_LINE = b"# this line was added by the demo\n"

_NOT_SOURCES = frozenset({b"__pycache__", b"site-packages", b"dist-packages"})


def sources(root: Path, limit: int | None) -> list[TreeFile]:
    """Return the files to import, in key order; with a limit, not without those the story is about."""
    found = [
        file
        for file in files_below(root)
        if file.size <= FILE_BYTES_MAX and _NOT_SOURCES.isdisjoint(file.name.split(b"/"))
    ]
    if limit is None:
        return found
    told = [file for file in found if file.name.startswith(HISTORY_DIRECTORIES)][: limit // 2]
    deleted = [file for file in found if file.name.startswith(DELETED_DIRECTORIES)][: limit // 4]
    chosen = dict.fromkeys([*told, *deleted, *found])
    return sorted(list(chosen)[:limit])


class Step(NamedTuple):
    """What is known of a step when it is over."""

    title: str
    seconds: float
    facts: dict[str, object]
    claims: dict[str, bool]


class Voice:
    """Prints what happens, unless silent, and keeps account of it."""

    def __init__(self, *, is_silent: bool) -> None:
        self.failed: list[str] = []
        self._is_silent = is_silent
        self._clock = mvccstore.SystemClock()
        self._began = self._clock.monotonic()
        self._steps: list[Step] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Tell one step."""
        self._steps.append(Step(title, 0.0, {}, {}))
        began = self._clock.monotonic()
        self.say("")
        self.say(f"{len(self._steps)}. {title}", bold=True)
        yield
        self._steps[-1] = self._steps[-1]._replace(seconds=round(self._clock.monotonic() - began, 3))

    @contextmanager
    def timed(self) -> Iterator[Callable[[], float]]:
        """Give what says how many seconds the block took, or has taken so far; never 0."""
        began = self._clock.monotonic()
        ended: list[float] = []
        yield lambda: max((ended[0] if ended else self._clock.monotonic()) - began, 1e-6)
        ended.append(self._clock.monotonic())

    def say(self, line: str, *, bold: bool = False, dim: bool = False) -> None:
        """Print a line."""
        if not self._is_silent:
            emit(click.style(line, bold=bold, dim=dim) if _has_colours() and (bold or dim) else line)

    def calls(self, *lines: str) -> None:
        """Show what a user would write."""
        for line in lines:
            prefix = "   >>> " if not line.startswith(" ") else "   ... "
            text = f"{prefix}{line}"
            if not self._is_silent:
                emit(click.style(text, fg="cyan") if _has_colours() else text)

    def tell(self, line: str, **facts: object) -> None:
        """Say what came of it."""
        self.say(f"   {line}")
        self._steps[-1].facts.update(facts)

    def claim(self, what: str, holds: bool) -> None:
        """Say what has been verified; remember it if it does not hold."""
        self._steps[-1].claims[what] = holds
        mark = "ok" if holds else "FAILED"
        if not holds:
            self.failed.append(what)
        if not self._is_silent:
            styled = click.style(mark, fg="green" if holds else "red", bold=True) if _has_colours() else mark
            emit(f"   {styled}: {what}")

    def end(self) -> None:
        """Say how it went."""
        seconds = self._clock.monotonic() - self._began
        claims = sum(len(step.claims) for step in self._steps)
        self.say("")
        if self.failed:
            self.say(f"{len(self.failed)} of {claims} claims FAILED, in {seconds:.1f} s", bold=True)
        else:
            self.say(f"All {claims} claims verified, in {seconds:.1f} s.", bold=True)

    def report(self) -> dict[str, object]:
        """Return the account."""
        seconds = round(self._clock.monotonic() - self._began, 3)
        return {"steps": [step._asdict() for step in self._steps], "is_ok": not self.failed, "seconds": seconds}


def _has_colours() -> bool:
    return on_terminal() and "NO_COLOR" not in os.environ


class Story:
    """What happens, in order."""

    def __init__(self, voice: Voice, root: Path, files: list[TreeFile], place: Path, engine: str) -> None:
        self._voice = voice
        self._root = root
        self._engine = engine
        self._path = place / "demo.mvcc"
        self._backup_path = place / "demo.bak"
        self._restored_path = place / "restored.mvcc"
        self._files = {file.name: file.path for file in files}
        self._bytes = sum(file.size for file in files)
        scripts = [name for name in self._files if name.endswith(b".py")] or list(self._files)
        self._directory, self._told = self._pick(HISTORY_DIRECTORIES, scripts)
        spared = [name for name in reversed(self._files) if not self._told.startswith(name)]
        self._deleted, _ = self._pick(DELETED_DIRECTORIES, spared, other=self._directory)
        self._edited = [name for name in scripts if not name.startswith(self._deleted)]
        self._expected: dict[bytes, bytes] = {}
        """What differs from the files in the end."""
        self._imported = self._reviewed = 0

    def _pick(self, wanted: tuple[bytes, ...], names: list[bytes], *, other: bytes = b"") -> tuple[bytes, bytes]:
        """Return a directory with some of these files in it, and the first of them; if none has, a file for both."""
        tops = sorted({name.split(b"/")[0] + b"/" for name in names if b"/" in name})
        for candidate in (*wanted, *tops):
            if candidate in tops and candidate != other:
                return candidate, next(name for name in names if name.startswith(candidate))
        return names[0], names[0]

    def _source(self, name: bytes) -> bytes:
        return self._files[name].read_bytes()

    def tell(self) -> None:
        """Tell it."""
        self._voice.say(
            f"The files: {plural(len(self._files), 'file')} of at most {human_bytes(FILE_BYTES_MAX)}, "
            f"{human_bytes(self._bytes)} together, below {self._root}"
        )
        with mvccstore.open(self._path, engine=self._engine) as store:
            self._import(store)
            self._change(store)
            self._look_back(store)
            self._follow_a_file(store)
            self._compact(store)
            self._back_up(store)
        self._reopen()
        self._restore()
        self._voice.end()

    def _import(self, store: mvccstore.Store) -> None:
        voice = self._voice
        names = list(self._files)
        with voice.step("Import the files, a few hundred in a transaction"):
            voice.calls(
                'store = mvccstore.open("demo.mvcc")',
                "with store.begin() as txn:",
                "    txn.put(key, path.read_bytes())",
            )
            with voice.timed() as took, progress_bar("import", "files") as progress:
                for i in range(0, len(names), FILES_A_TXN):
                    with store.begin() as txn:
                        for done, name in enumerate(names[i : i + FILES_A_TXN], i + 1):
                            txn.put(name, self._source(name))
                            if not done % 20:
                                progress(done, len(names))
            self._imported = store.revision
            count, seconds = len(names), took()
            voice.tell(
                f"{plural(count, 'file')} in {plural(store.revision - 1, 'transaction')}: {seconds:.2f} s, "
                f"{count / seconds:,.0f} files/s, {human_bytes(round(self._bytes / seconds))}/s, every commit on disk",
                files=count,
                bytes=self._bytes,
                seconds=round(seconds, 3),
            )
            voice.claim(
                f"store.count(KeyRange.all()) is {count:,}, at revision {store.revision}",
                store.count(mvccstore.KeyRange.all()) == count,
            )

    def _change(self, store: mvccstore.Store) -> None:
        voice = self._voice
        with voice.step("Change and delete some of it"):
            self._edit(store)
            self._delete(store)
            self._compare(store)
            before = store.revision
            voice.calls("with store.begin() as txn:", "    txn.delete(KeyRange.all())", "    raise RuntimeError")
            try:
                with store.begin() as txn:
                    txn.delete(mvccstore.KeyRange.all())
                    raise _MindChangedError
            except _MindChangedError:
                left = store.count(mvccstore.KeyRange.all())
            voice.claim(
                f"it was rolled back: {left:,} keys, still revision {before}", store.revision == before and left > 0
            )

    def _edit(self, store: mvccstore.Store) -> None:
        voice, names = self._voice, self._edited
        voice.calls("with store.begin() as txn:", "    txn.put(key, txn.get(key).value + line)")
        with voice.timed() as took, progress_bar("change", "files") as progress:
            for i in range(0, len(names), FILES_A_TXN):
                with store.begin() as txn:
                    for done, name in enumerate(names[i : i + FILES_A_TXN], i + 1):
                        kv = txn.get(name)
                        txn.put(name, (kv.value if kv is not None else b"") + ADDED_LINE)
                        progress(done, len(names))
        for name in names:
            self._expected[name] = self._source(name) + ADDED_LINE
        voice.tell(
            f"a line added to {plural(len(names), 'file')}: {took():.2f} s, {len(names) / took():,.0f} files/s",
            changed=len(names),
        )

    def _delete(self, store: mvccstore.Store) -> None:
        voice = self._voice
        voice.calls(f"store.delete(KeyRange.prefix({self._deleted!r}))")
        wanted = [name for name in self._files if name.startswith(self._deleted)]
        deleted = store.delete(mvccstore.KeyRange.prefix(self._deleted))
        voice.tell(f"{plural(deleted, 'file')} deleted, in one revision: {store.revision}", deleted=deleted)
        voice.claim("that is every file of that directory", deleted == len(wanted) > 0)

    def _compare(self, store: mvccstore.Store) -> None:
        voice, key = self._voice, self._told
        kv = store.get(key)
        seen = kv.mod_revision if kv is not None else 0
        voice.calls(
            f"store.txn(compare=[Compare.mod_revision({key!r}, '==', {seen})],",
            "          success=[Op.put(...)], failure=[Op.range(...)])      # and once more",
        )
        changed = b"# reviewed\n" + self._expected.get(key, self._source(key))
        results = [
            store.txn(
                compare=[mvccstore.Compare.mod_revision(key, "==", seen)],
                success=[mvccstore.Op.put(key, changed)],
                failure=[mvccstore.Op.range(key)],
            )
            for _ in range(2)
        ]
        self._expected[key] = changed
        self._reviewed = results[0].revision
        voice.claim(
            f"the first succeeded as revision {results[0].revision}, the second saw that and changed nothing",
            [result.succeeded for result in results] == [True, False] and store.revision == results[0].revision,
        )

    def _look_back(self, store: mvccstore.Store) -> None:
        voice, at = self._voice, self._imported
        keys, gone = mvccstore.KeyRange.prefix(self._directory), mvccstore.KeyRange.prefix(self._deleted)
        with voice.step(f"List a directory as it was at revision {at}"):
            voice.calls(f"store.range(KeyRange.prefix({self._directory!r}), revision={at})")
            then = store.range(keys, revision=at)
            now = {kv.key: kv for kv in store.range(keys)}
            table = [("key", "size then", "size now", "version now")]
            for kv in then.kvs[:LISTED]:
                latest = now.get(kv.key)
                sizes = (f"{len(latest.value):,}", str(latest.version)) if latest is not None else ("-", "-")
                table.append((escaped(kv.key), f"{len(kv.value):,}", *sizes))
            for line in _aligned(table):
                voice.say(f"   {line}", dim=line.startswith("key "))
            if then.count > LISTED:
                voice.say(f"   ... and {then.count - LISTED} more")
            wanted = [name for name in self._files if name.startswith(self._directory)]
            voice.claim(
                f"all {then.count} equal the files on disk, byte for byte",
                [kv.key for kv in then] == wanted and all(kv.value == self._source(kv.key) for kv in then),
            )
            voice.calls(f"store.count(KeyRange.prefix({self._deleted!r}), revision={at})")
            counts = store.count(gone, revision=at), store.count(gone)
            voice.claim(
                f"what was deleted is there at revision {at}: {counts[0]} files; now: {counts[1]}",
                counts[0] > counts[1] == 0,
            )
            self._read_everything(store)

    def _read_everything(self, store: mvccstore.Store) -> None:
        voice, at = self._voice, self._imported
        voice.calls(f"for kv in store.scan(KeyRange.all(), revision={at}): ...")
        size = same = 0
        reading = 0.0
        with voice.timed() as took:
            for kv in store.scan(mvccstore.KeyRange.all(), revision=at):
                size += len(kv.value)
        reading = took()
        for name in self._files:
            old = store.get(name, revision=at)
            same += old is not None and old.value == self._source(name)
        voice.tell(
            f"{human_bytes(size)} of values read at revision {at} in {reading:.2f} s, {human_bytes(round(size / reading))}/s"
        )
        voice.claim(
            f"every one of the {len(self._files):,} files at revision {at} equals its source", same == len(self._files)
        )

    def _follow_a_file(self, store: mvccstore.Store) -> None:
        voice, key = self._voice, self._told
        with voice.step(f"Follow one file: {escaped(key)}"):
            voice.calls(
                f"store.delete({key!r}); store.put({key!r}, ...)      # gone, and made anew", f"store.history({key!r})"
            )
            reviewed, last = self._expected[key], b"# made anew\n" + self._source(key)
            deleted = store.delete(key)
            store.put(key, last)
            self._expected[key] = last
            events = list(store.history(key))
            table = [("revision", "change", "version", "size")]
            for event in events:
                kind = "create" if event.is_create else event.type
                facts = (str(event.kv.version), f"{len(event.kv.value):,}") if event.type == "put" else ("-", "-")
                table.append((str(event.revision), kind, *facts))
            for line in _aligned(table):
                voice.say(f"   {line}", dim=line.startswith("revision"))
            kinds = [event.type for event in events]
            voice.claim(
                "created, changed twice, deleted, created again",
                deleted == 1 and kinds[0] == "put" and kinds[-2:] == ["delete", "put"] and events[-1].kv.version == 1,
            )
            first, later = (store.get(key, revision=at) for at in (self._imported, self._reviewed))
            assert first is not None
            assert later is not None
            voice.calls(
                f"store.get({key!r}, revision={self._imported}).value      # and {self._reviewed}; their difference:"
            )
            for line in _difference(first, later):
                voice.say(f"   {line}")
            voice.claim(
                "the first equals the file on disk, the other what was written to it",
                (first.value, later.value) == (self._source(key), reviewed),
            )

    def _compact(self, store: mvccstore.Store) -> None:
        voice, at, now = self._voice, self._imported, store.revision
        before = store.stats()
        with voice.step("Forget history, but keep what a snapshot sees"):
            voice.calls(
                f"with store.snapshot(revision={at}) as view:", f"    store.compact({now})", "    view.get(key)"
            )
            with store.snapshot(revision=at) as view:
                store.compact(now, physical=True)
                kept = store.stats()
                voice.claim(
                    f"store.get(key, revision={at}) raises CompactedError",
                    _raises(lambda: store.get(self._told, revision=at)),
                )
                same = sum(kv.value == self._source(kv.key) for kv in view.scan(mvccstore.KeyRange.all()))
                voice.claim(f"the snapshot still reads all {same:,} files as they were", same == len(self._files))
            voice.calls("store.reclaim()      # the snapshot is closed")
            with voice.timed() as took:
                store.reclaim()
            after = store.stats()
            voice.tell(
                f"changes kept: {before.revisions_kept:,} -> {kept.revisions_kept:,} with the snapshot open -> "
                f"{after.revisions_kept:,}; data: {human_bytes(before.used_bytes)} -> {human_bytes(after.used_bytes)}; "
                f"{took():.2f} s",
                revisions_before=before.revisions_kept,
                revisions_after=after.revisions_kept,
                used_bytes_before=before.used_bytes,
                used_bytes_after=after.used_bytes,
            )
            voice.claim(
                "one change is left for every key that is",
                after.revisions_kept == store.count(mvccstore.KeyRange.all()),
            )
            voice.claim("what is current is as it was", self._is_as_expected(store))

    def _back_up(self, store: mvccstore.Store) -> None:
        voice = self._voice
        with voice.step("Back up, while the store is open"):
            voice.calls('store.backup("demo.bak")')
            with voice.timed() as took, progress_bar("backup", "records") as progress:
                store.backup(self._backup_path, progress=progress)
            size = self._backup_path.stat().st_size
            used = store.stats().file_bytes
            voice.tell(
                f"{human_bytes(size)} in {took():.2f} s, {human_bytes(round(size / took()))}/s (the store's file: {human_bytes(used)})",
                file_bytes=used,
                backup_bytes=size,
            )
            voice.calls("store.hash_kv()      # over keys, values, revisions, in etcd's way")
            with voice.timed() as took, progress_bar("hash", ""):
                self._hash = store.hash_kv()
            at, number = self._hash.hash_revision, self._hash.hash
            voice.tell(f"{number:#010x} at revision {at}, in {took():.1f} s (google-crc32c speeds it up)", hash=number)

    def _reopen(self) -> None:
        voice = self._voice
        with voice.step("Close, reopen, check"):
            voice.calls('store = mvccstore.open("demo.mvcc")', "store.check()")
            with voice.timed() as took:
                store = mvccstore.open(self._path)
            with store:
                opened = took()
                with voice.timed() as took, progress_bar("check", "records") as progress:
                    problems = store.check(progress=progress)
                voice.tell(f"opened in {opened * 1000:.1f} ms, every page and record checked in {took():.2f} s")
                for problem in problems:
                    voice.say(f"   {escaped(problem.encode())}")
                voice.claim("store.check() == []", problems == [])
                voice.claim(f"it goes on at revision {store.revision}", store.revision == self._hash.hash_revision)
                voice.claim("every file is as it was written", self._is_as_expected(store))

    def _restore(self) -> None:
        voice = self._voice
        with voice.step("Restore the backup as a new store, and compare"):
            voice.calls('mvccstore.restore("demo.bak", "restored.mvcc")')
            with voice.timed() as took, progress_bar("restore", "records checked") as progress:
                revision = mvccstore.restore(self._backup_path, self._restored_path, progress=progress)
            voice.tell(f"checked and restored in {took():.2f} s, at revision {revision}")
            with mvccstore.open(self._restored_path, read_only=True) as restored:
                with progress_bar("hash", ""):
                    hashed = restored.hash_kv()
                voice.claim("its hash_kv() equals that of the store", hashed == self._hash)
                voice.claim("every file in it is as it was written", self._is_as_expected(restored))

    def _is_as_expected(self, store: mvccstore.Store) -> bool:
        """Whether the store has every file as it should be now, and nothing else."""
        wanted = iter(sorted(name for name in self._files if not name.startswith(self._deleted)))
        for kv in store.scan(mvccstore.KeyRange.all()):
            if kv.key != next(wanted, None):
                return False
            if kv.value != (self._expected.get(kv.key) or self._source(kv.key)):
                return False
        return next(wanted, None) is None


class _MindChangedError(Exception):
    """Raised to have a block rolled back."""


def _raises(call: Callable[[], object]) -> bool:
    try:
        call()
    except mvccstore.CompactedError:
        return True
    return False


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows as lines, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _difference(old: mvccstore.KeyValue, new: mvccstore.KeyValue) -> list[str]:
    """Return a few lines that say what changed."""
    before, after = (kv.value.decode(errors="replace").splitlines() for kv in (old, new))
    names = (f"revision {old.mod_revision}", f"revision {new.mod_revision}")
    lines = list(difflib.unified_diff(before, after, *names, lineterm="", n=1))
    shown = [escaped(line.encode())[:100] for line in lines[:14]]
    return shown + ([f"... {len(lines) - 14} lines more"] if len(lines) > 14 else [])
