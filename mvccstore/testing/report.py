"""What a server has to say when a test has failed: its last calls, what is in it, and who watches."""

from __future__ import annotations

from google.protobuf import text_format
from google.protobuf.message import Message

from mvccstore.store import Store
from mvccstore.testing.calls import Calls, RecordedCall
from mvccstore.testing.contents import as_text
from mvccstore.types import KeyRange

CALLS_SHOWN = 20
KEYS_SHOWN = 50
_CHARACTERS_MAX = 200
_SECRETS = ("password", "hashedPassword")


def last_calls(calls: Calls) -> str:
    """Return the last calls, one a line, the newest last."""
    found = list(calls)
    lines = [describe(call) for call in found[-CALLS_SHOWN:]]
    if len(found) > CALLS_SHOWN:
        lines.insert(0, f"... {len(found) - CALLS_SHOWN} before")
    return "\n".join(lines) or "none"


def describe(call: RecordedCall) -> str:
    """Return a call as a line.

    >>> describe(RecordedCall(1, "/etcdserverpb.KV/Put", "127.0.0.1:1", (), 0))
    '#1 KV.Put() -> under way'
    """
    end = "under way" if call.code is None else call.code.name
    if call.message:
        end += f" {call.message!r}"
    answers = len(call.encoded_answers)
    count = f", {answers} answers" if answers > 1 else ""
    fault = f" [{call.fault}]" if call.fault else ""
    return f"#{call.number} {call.service}.{call.method}({_request(call)}) -> {end}{count}{fault}"


def _request(call: RecordedCall) -> str:
    shown = "; ".join(map(_message, call.requests[:3]))
    more = f"; {len(call.requests) - 3} more" if len(call.requests) > 3 else ""
    return (shown if len(shown) <= _CHARACTERS_MAX else f"{shown[:_CHARACTERS_MAX]}...") + more


def _message(request: Message) -> str:
    # What a test prints is often kept, and read by others: passwords are not in it.
    for name in _SECRETS:
        if getattr(request, name, ""):
            copy = type(request)()
            copy.CopyFrom(request)
            setattr(copy, name, "...")
            request = copy
    return text_format.MessageToString(request, as_one_line=True)


def final_contents(store: Store) -> str:
    """Return the keys of a store, one a line, under its revision."""
    rows = store.range(KeyRange.all(), limit=KEYS_SHOWN)
    lines = [f"revision {rows.revision}, {rows.count} keys"]
    for kv in rows.kvs:
        value = str(as_text(kv.value))
        shown = value if len(value) <= _CHARACTERS_MAX else f"{value[:_CHARACTERS_MAX]}... ({len(kv.value)} bytes)"
        lease = f", lease {kv.lease:x}" if kv.lease else ""
        lines.append(f"{as_text(kv.key)} = {shown}  (revision {kv.mod_revision}, version {kv.version}{lease})")
    if rows.more:
        lines.append(f"... {rows.count - len(rows.kvs)} more")
    return "\n".join(lines)


def open_streams(calls: Calls) -> str:
    """Return the streams that are open, one a line: watches, keep-alives, and what waits."""
    return "\n".join(describe(call) for call in calls.under_way()) or "none"
