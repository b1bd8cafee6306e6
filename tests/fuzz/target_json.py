"""JSON bodies: into messages and back, and cut into objects as they come."""

from __future__ import annotations

from contextlib import suppress

from mvccstore.server.gateway.splitter import JsonSplitter
from mvccstore.server.messages import METHODS
from mvccstore.server.messages.json import JsonError, from_json, many_from_json, to_json
from tests.fuzz.choices import Choices

TYPES = tuple(METHODS[path].request for path in sorted(METHODS))
_TXN = b"/etcdserverpb.KV/Txn"


def run(data: bytes) -> None:
    """Decode the text behind the first byte, which chooses the message; behind the second, which says how it is cut."""
    choices = Choices(data)
    message_type, size, text = choices.pick(TYPES), choices.byte(), choices.rest()
    with suppress(JsonError):
        for message in many_from_json(message_type, text):
            encoded = to_json(message)
            assert from_json(message_type, encoded) == message
            assert to_json(from_json(message_type, encoded)) == encoded
    whole = _split([text])
    assert _split([text[at : at + size + 1] for at in range(0, len(text), size + 1)]) == whole
    assert sum(map(len, whole[0])) <= len(text)


def _split(parts: list[bytes]) -> tuple[list[bytes], bytes | str]:
    splitter = JsonSplitter()
    found: list[bytes] = []
    try:
        for part in parts:
            found += filter(None, splitter.feed(part))
    except ValueError as error:
        return found, str(error)
    return found, splitter.rest


def _of(name: str, text: bytes) -> bytes:
    return bytes((sorted(METHODS).index(name), 3)) + text


SEEDS = (
    _of("/etcdserverpb.KV/Put", b'{"key":"Zm9v","value":"YmFy\\n","lease":"-7","prevKv":true}'),
    _of(
        "/etcdserverpb.KV/Range", b'{"key":"AA==","range_end":"AA==","limit":10,"sort_order":"DESCEND","sortTarget":2}'
    ),
    _of(
        "/etcdserverpb.KV/Txn",
        b'{"compare":[{"key":"YQ","target":"VALUE","value":"Yg"}],"success":[{"requestTxn":{"success":[{}]}}]}',
    ),
    _of("/etcdserverpb.Watch/Watch", b'{"create_request":{"key":"YQ","filters":["NOPUT",1]}} {"progress_request":{}}'),
    _of("/etcdserverpb.Lease/LeaseGrant", b'{"TTL":1e1,"ID":"9223372036854775807","x":{"y":["}\\""]}}'),
)
