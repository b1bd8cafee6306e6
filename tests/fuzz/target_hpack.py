"""Header blocks: the decoder that keeps heads against one that keeps nothing."""

from __future__ import annotations

from contextlib import suppress

from hpack import Decoder, HPACKError, OversizedHeaderListError

from mvccstore.server.transport.frames import ProtocolError, StreamError
from mvccstore.server.transport.head import Head, HeadDecoder
from mvccstore.server.transport.limits import TransportLimits
from tests.fuzz.choices import Choices
from tests.wire.http2_kit import Services, literal_block, request_fields

LIMITS = TransportLimits(header_bytes_max=4_096)
ROUTER = Services().router()
BLOCK = literal_block(request_fields())


def run(data: bytes) -> None:
    """Decode blocks, one after the other, up to one that cannot be."""
    choices = Choices(data)
    decoder = HeadDecoder(ROUTER, LIMITS)
    plain = Decoder(max_header_list_size=LIMITS.header_bytes_max)
    while choices:
        size = choices.byte()
        block = choices.take(size & 0x7F)
        if size & 0x80:
            block = BLOCK + block  # a request, and more
        fields: list[tuple[bytes, bytes]] | None = None
        with suppress(HPACKError, OversizedHeaderListError, ValueError, IndexError, UnicodeError, OverflowError):
            fields = [(bytes(name), bytes(value)) for name, value, *_ in plain.decode(block, raw=True)]
        try:
            head = decoder.decode(block)
        except ProtocolError:
            assert fields is None
            return
        except StreamError:
            assert fields is not None
            continue
        assert fields is not None
        _check_same(head, decoder._head(fields))
        assert decoder._table._current_size <= 4_096
        assert len(decoder._kept) <= 64


def _check_same(kept: Head, fresh: Head) -> None:
    for name in ("http_status", "is_gzip", "is_plain_unary", "method", "timeout", "held_bytes", "content_length"):
        assert getattr(kept, name) == getattr(fresh, name), name
    assert kept.metadata.pairs == fresh.metadata.pairs
    assert str(kept.refusal) == str(fresh.refusal)


SEEDS = (
    b"\x85\x40\x01a\x01b\x81\xbe\x81\xbe\x85\x40\x01a\x01c\x81\xbe",
    b"\x80\x80\x05\x40\x01a\x01b\x82\xbe\xbe\x81\x20",
    bytes((len(BLOCK),)) + BLOCK[:127],
    b"\x10\x40\x0aabcdefghij\x03123\x81\xbe\x82\x3f\x10\x83\xbe\x82\x84",
    b"\x88\x00\x84\xb9\x49\x53\x39\xe4\x01x",
    b"\x85\x3f\xe1\x1f\x82\x84",
)
