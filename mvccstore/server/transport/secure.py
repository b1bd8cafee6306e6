"""One connection over TLS: between the loop's transport, which carries records, and a protocol that knows none of it.

What it owns: OpenSSL's state of one connection, over two buffers in memory. Why not the loop's own TLS: here the alert
that says why a handshake failed is sent before the connection ends, plain text is recognised, handshakes under way
are the port's connections, with its limits, and uvloop and asyncio do the same.

Invariants:

* I1. The protocol is told of the connection once the handshake is done and the client's certificate was accepted.
* I2. Nothing is kept of what was decrypted, and nothing of what was encrypted: both go on at once. So what waits is
  what waits in the transport below, and its limits hold; and, while the protocol above has reading paused, what was read
  at once before.
* I3. A client breaks its own connection, by whatever it sends.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, cast

from mvccstore.server.transport.limits import TransportLimits
from mvccstore.server.transport.tls import CertificateRefusedError, Handshakes
from mvccstore.server.transport.turns import Turns

_log = logging.getLogger("mvccstore.server")

_READ_BYTES = 256 * 1024
_WRITTEN_BYTES = 64 * 1024
"""So much is encrypted at once: OpenSSL's buffers keep the size that they have had, for as long as the connection is."""
_HANDSHAKE_RECORD = 0x16
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "tls: client didn't provide a certificate",
    "NO_SHARED_CIPHER": "tls: no cipher suite supported by both client and server",
    "UNSUPPORTED_PROTOCOL": "tls: client offered only unsupported versions",
}
_NO_TLS = "tls: first record does not look like a TLS handshake"


class Owner(Protocol):
    """What keeps the handshakes that are under way: the port."""

    def greet(self, greeter: SecureTransport, /) -> None:
        """Keep one."""
        ...

    def part(self, greeter: SecureTransport, /) -> None:
        """Forget it."""
        ...

    @property
    def turns(self) -> Turns:
        """Where it reads into."""
        ...


class SecureTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """A protocol of the loop's transport, and the transport of the protocol above.

    Args:
        make: Makes the protocol above.
        rejected: Called with the reason when a handshake fails.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        handshakes: Handshakes,
        limits: TransportLimits,
        owner: Owner,
        rejected: Callable[[], None],
    ) -> None:
        super().__init__()
        self._make = make
        self._handshakes = handshakes
        self._limits = limits
        self._owner = owner
        self._rejected = rejected
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._below: asyncio.Transport | None = None
        self._above: asyncio.Protocol | None = None
        self._certificate: bytes | None = None
        self._is_paused = False
        self._is_closing = False
        self._since = 0.0

    # The transport below calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake."""
        self._below = cast("asyncio.Transport", transport)
        self._since = asyncio.get_running_loop().time()
        self._owner.greet(self)

    def get_buffer(self, _size: int) -> memoryview:
        """Say where to put what comes."""
        return self._owner.turns.buffer()

    def buffer_updated(self, size: int) -> None:
        """Take what came there."""
        self.data_received(self._owner.turns.taken(size))

    def data_received(self, data: bytes) -> None:
        """Go on with the handshake, or decrypt."""
        if self._is_closing:
            return
        if self._tls is None:
            if data[0] != _HANDSHAKE_RECORD:
                self._reject(_NO_TLS)
                return
            context = self._handshakes.context()
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._incoming.write(data)
        if self._above is None and not self._shake(self._tls):
            return
        self._read()

    def eof_received(self) -> None:
        """The client says no more; nor do we, once what is under way is written."""
        if self._above is not None and not self._is_closing:
            self._above.eof_received()

    def pause_writing(self) -> None:
        """Pass it on."""
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self._above is not None:
            self._above.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Pass it on."""
        self._is_closing = True
        self._below = None
        if self._above is not None:
            self._above.connection_lost(error)
        else:
            self._owner.part(self)

    def _shake(self, tls: ssl.SSLObject) -> bool:
        """Go on with the handshake; return whether it is done."""
        try:
            tls.do_handshake()
            self._certificate = self._handshakes.check(tls)
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._reject(_REASONS.get(error.reason, f"tls: {error.reason or error}".replace("_", " ").lower()))
            return False
        except CertificateRefusedError as error:
            self._flush()
            self._reject(str(error))
            return False
        self._flush()
        self._owner.part(self)
        self._above = self._make()
        self._above.connection_made(self)
        return True

    def _reject(self, reason: str) -> None:
        address = self.get_extra_info("peername")
        shown = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address or "unix")
        fields = {"remote-addr": shown, "error": reason}
        _log.warning("rejected connection on client endpoint", extra={"fields": fields})
        self._rejected()
        self._is_closing = True
        if self._below is not None:
            self._below.close()

    def _read(self) -> None:
        """Give on what has come, as long as it is taken."""
        assert self._tls is not None
        assert self._above is not None
        while not self._is_closing and not self._is_paused:
            try:
                data = self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:  # it is no TLS any more (I3)
                self._limits.cuts.note_told("tls", "broken")
                self._flush()
                self.abort()
                return
            if not data:  # the client has ended its half in TLS's way
                self._above.eof_received()
                self.close()
                return
            self._above.data_received(data)
        self._flush()  # what OpenSSL answers by itself
        if self.get_write_buffer_size() > self._limits.queued_bytes_max and not self._is_closing:
            self._limits.cuts.note("queued_bytes_max")
            self.abort()

    def _flush(self) -> None:
        if self._outgoing.pending and self._below is not None:
            self._below.write(self._outgoing.read())

    # The protocol above calls

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        tls = self._tls
        if tls is None or self._below is None or self._is_closing:
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[tls.write(rest[:_WRITTEN_BYTES]) :]
                self._flush()
        except ssl.SSLError:  # the client has broken it (I3)
            self.abort()

    def close(self) -> None:
        """Say so in TLS's way, and close when everything is written."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._tls is not None and self._above is not None:
            with suppress(ssl.SSLError):  # its answer is not waited for
                self._tls.unwrap()
            self._flush()
        if self._below is not None:
            self._below.close()

    def abort(self) -> None:
        """Close at once."""
        self._is_closing = True
        if self._below is not None:
            self._below.abort()

    def is_closing(self) -> bool:
        """Say whether it was closed, or is being."""
        return self._is_closing or self._below is None or self._below.is_closing()

    def can_write_eof(self) -> bool:
        """Half a connection cannot be closed in TLS."""
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another take what comes."""
        self._above = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who takes what comes."""
        assert self._above is not None
        return self._above

    def pause_reading(self) -> None:
        """Hold back what comes."""
        self._is_paused = True
        if self._below is not None and not self._below.is_closing():
            self._below.pause_reading()

    def resume_reading(self) -> None:
        """Undo that."""
        if self._is_paused:
            self._is_paused = False
            if self._below is not None and not self._below.is_closing():
                self._below.resume_reading()
                asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._above is not None and not self._is_closing:
            self._read()

    def is_reading(self) -> bool:
        """Say whether what comes is not held back."""
        return not self._is_paused

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Pass it on."""
        if self._below is not None:
            self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return what waits below, as records."""
        return 0 if self._below is None else self._below.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the transport's below; also `sslcontext`, `ssl_object`, and `certificate`: the client's, DER."""
        match name:
            case "sslcontext":
                return None if self._tls is None else self._tls.context
            case "ssl_object":
                return self._tls
            case "certificate":
                return self._certificate
            case _:
                return default if self._below is None else self._below.get_extra_info(name, default)

    # The port calls, during the handshake

    def drain(self) -> None:
        """Nothing is under way."""
        self.abort()

    def look_after(self, now: float) -> None:
        """Give up a handshake that takes too long."""
        if now - self._since > self._limits.tls_handshake_seconds:
            self._limits.cuts.note("tls_handshake_seconds")
            self._reject("tls: the handshake takes too long")
