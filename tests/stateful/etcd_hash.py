"""HashKV, step by step as etcd's documentation has it, over a model's events. Slow, and shares no code with ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mvccstore import Event, KeyValue


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _table_row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = [_table_row(byte) for byte in range(256)]


def _varint(number: int) -> bytes:
    number %= 2**64
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _protobuf(event: Event) -> bytes:
    kv = event.kv if event.type == "put" else KeyValue(event.kv.key, 0, 0, 0, b"", 0)
    encoded = b""
    for number, value in enumerate(kv, 1):
        if isinstance(value, bytes) and value:
            encoded += bytes([number << 3 | 2]) + _varint(len(value)) + value
        elif isinstance(value, int) and value:
            encoded += bytes([number << 3]) + _varint(value)
    return encoded


def _with_subs(events: Sequence[Event]) -> Iterator[tuple[int, int, Event]]:
    main = sub = 0
    for event in events:
        sub = sub + 1 if event.revision == main else 0
        main = event.revision
        yield main, sub, event


def hash_kv(events: Sequence[Event], revision: int, compact_revision: int) -> int:
    """Hash a whole history, nothing of it compacted away, as etcd does when compaction has run to its end.

    The floor that compaction has put under it may be anything up to `revision`.
    """
    placed = list(_with_subs(events))
    at_floor = {event.kv.key: (main, sub) for main, sub, event in placed if main <= compact_revision}
    newest = {event.kv.key: (main, sub, event) for main, sub, event in placed if main <= revision}
    keep = {(main, sub) for main, sub, event in newest.values() if event.type == "put"}
    hashed = b"key"
    for main, sub, event in placed:
        if main <= compact_revision:
            is_tombstone = event.type == "delete"
            if at_floor[event.kv.key] != (main, sub) or is_tombstone:
                continue  # compaction took it, or has kept a tombstone that hashing passes over
            if keep and (main, sub) not in keep:
                continue
        if main <= revision:
            hashed += main.to_bytes(8) + b"_" + sub.to_bytes(8) + b"t" * (event.type == "delete") + _protobuf(event)
    return _crc32c(hashed)
