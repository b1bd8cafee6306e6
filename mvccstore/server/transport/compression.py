"""Messages of gRPC that are compressed: by gzip, which is all that etcd takes."""

from __future__ import annotations

import zlib

from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.status import Code, RpcError

DEFLATED_BYTES_MAX = 1 << 20
"""Larger answers are sent as they are, also to who takes gzip: the loop's thread has others to serve."""
_GZIP = 31


def deflated(message: bytes) -> bytes:
    """Compress an answer."""
    deflater = zlib.compressobj(1, wbits=_GZIP)
    return deflater.compress(message) + deflater.flush()


def inflated(flag: int, message: bytes, limits: TransportLimits, *, is_announced: bool) -> bytes:
    """Return what a message is that has a flag; `is_announced` says whether the head names gzip.

    Raises:
        RpcError: It is not what it is said to be, or larger than a message may be.
    """
    if flag != 1:
        raise RpcError(Code.INTERNAL, f"grpc: received unexpected payload format {flag}")
    if not is_announced:
        raise RpcError(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
    limit = limits.message_bytes_max
    plain = b""
    for _ in range(limits.gzip_members_max):
        inflater = zlib.decompressobj(wbits=_GZIP)
        try:
            plain += inflater.decompress(message, limit + 1 - len(plain))
        except zlib.error as error:
            raise RpcError(Code.INTERNAL, f"grpc: failed to read decompressed data: {error}") from None
        if len(plain) > limit:
            text = f"grpc: received message after decompression larger than max {limit}"
            raise RpcError(Code.RESOURCE_EXHAUSTED, text, "message_bytes_max")
        if not inflater.eof:
            raise RpcError(Code.INTERNAL, "grpc: failed to read decompressed data: unexpected EOF")
        message = inflater.unused_data
        if not message:
            return plain
        # What follows is another member (RFC 1952 2.2).
    text = f"grpc: failed to read decompressed data: more than {limits.gzip_members_max} members"
    raise RpcError(Code.INTERNAL, text, "gzip_members_max")
