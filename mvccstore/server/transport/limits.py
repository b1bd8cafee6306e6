"""What one connection may ask of the server. Each limit has a name, a default, a counter, and a test that goes beyond it.

docs/limits.md has them all, with those of requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mvccstore.server.transport.counts import Cuts, Totals
from mvccstore.server.transport.frames import WINDOW_BYTES

_OF_A_TURN = ("slice_frames", "slice_bytes", "slice_messages", "http_turn_requests", "http_turn_messages")
"""Of these, each turn of a connection carries out one at least."""


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds that hold for each connection. A peer that goes beyond one loses its call, or its connection."""

    message_bytes_max: int = 1_572_864 + 512 * 1024
    """The largest request; etcd's is its `--max-request-bytes` and 512 KiB."""
    header_bytes_max: int = 256 * 1024
    """The largest header block, as sent and as decoded."""
    continuations_max: int = 64
    """The most CONTINUATION frames of one header block."""
    streams_max: int = 2**31 - 1
    """The most calls at once: etcd's `--max-concurrent-streams`."""
    streams_open_max: int = 65_536
    """The most calls at once whatever `streams_max` says: etcd's default is more than any memory holds."""
    received_bytes_max: int = 64 << 20
    """The most bytes of requests that are not complete yet, and of large heads of calls under way."""
    all_received_bytes_max: int = 512 << 20
    """The most such bytes of all connections; see `memory`."""
    queued_bytes_max: int = 256 << 20
    """The most bytes of answers that wait for the client."""
    all_queued_bytes_max: int = 1 << 30
    """The most such bytes of all connections; see `memory`."""
    unread_bytes_max: int = 16 << 20
    """The most bytes of frames that no window holds back (statuses, acknowledgements) while the client does not read."""
    slice_frames: int = 64
    """How many frames of a connection are carried out at once, before others have their turn."""
    slice_bytes: int = 32 * 1024
    """How many bytes of them: a frame more, at most."""
    slice_answer_bytes: int = 128 * 1024
    """How many bytes of answers to them: an answer more, at most."""
    slice_messages: int = 64
    """How many messages of gRPC, of frames that have more than one or parts of some."""
    begun_max: int = 64
    """How many slices are begun at once while nobody waits, before those that are not small wait, too."""
    light_bytes: int = 1024
    """A small one."""
    turn_seconds: float = 0.005
    """For how long, in a turn of the loop, those are carried out who have sent more than a slice."""
    waiting_bytes_max: int = 64 * 1024
    """Nothing is read from a connection while more than this of it waits to be carried out."""
    all_waiting_bytes_max: int = 16 << 20
    """From so much that waits of all connections on, little is read of each, and nothing while some of it waits."""
    gzip_members_max: int = 16
    """The most members of one compressed request: each is copied to find the next."""
    window_bytes: int = 1 << 20
    """The window of each stream for what the client sends, 65,535 at least; the connection's is 16 times as large."""
    flood_seconds: float = 10.0
    """The time within which the next two are counted."""
    resets_max: int = 4_000
    """The most calls under way that a client may take back within `flood_seconds`, or break by what it sends."""
    control_frames_max: int = 10_000
    """The most PING, SETTINGS, PRIORITY, empty and late frames within `flood_seconds`."""
    ping_seconds_min: float = 5.0
    """Clients may ping this often while they have a call: etcd's `--grpc-keepalive-min-time`."""
    idle_ping_seconds_min: float = 7200.0
    """Clients may ping this often while they have none."""
    ping_strikes_max: int = 2
    """How many pings may come too early."""
    keepalive_seconds: float = 7200.0
    """A client that was silent for so long is pinged: etcd's `--grpc-keepalive-interval`."""
    keepalive_timeout_seconds: float = 20.0
    """A client that does not answer a ping for so long is gone: etcd's `--grpc-keepalive-timeout`."""
    handshake_seconds: float = 120.0
    """How long a client may take to begin: to send its preface, or its first request."""
    frame_seconds: float = 300.0
    """How long a frame of HTTP/2, or a header block, may take from its first byte to its last."""
    message_seconds: float = 300.0
    """How long a message of gRPC may take, from its first byte to its last; of a call with one, from the head to the end."""
    connections_max: int = 0
    """The most connections of one port; 0 for as many as the process may have files, but for some: etcd's."""
    tls_handshake_seconds: float = 10.0
    """How long the handshake of TLS may take."""
    http_head_bytes_max: int = 64 * 1024
    """The largest head of an HTTP/1.1 request."""
    http_pipelined_bytes_max: int = 256 * 1024
    """What may wait behind an HTTP/1.1 request that is not answered yet, or be left over of its body."""
    http_turn_requests: int = 16
    """How many pipelined requests are carried out before other connections have their turn."""
    http_turn_messages: int = 64
    """How many messages of a stream in JSON, chunks of a body, or frames of a WebSocket are carried out before other
    connections have their turn."""
    http_idle_seconds: float = 300.0
    """How long an HTTP/1.1 connection is kept between requests."""
    http_head_seconds: float = 30.0
    """How long the head of a request may take, from its first byte to its last."""
    http_body_seconds: float = 300.0
    """How long the body of a request may take that is no stream."""
    http_stall_seconds: float = 300.0
    """How long a client may take for 256 KiB (`WRITABLE_BYTES`) of an answer that is no stream, or for what is left."""
    http_linger_seconds: float = 2.0
    """How long a connection stays half open: after a refusal, for the client to read it; and when the client has
    ended its half, for it to be answered. It may be gone altogether: that looks the same from here."""

    websocket_fragments_max: int = 65_536
    """The most frames of one message of a WebSocket. How large it may be is `http_body_bytes_max`."""
    websocket_message_seconds: float = 300.0
    """How long a message may take, from its first frame to its last."""
    cuts: Cuts = field(default_factory=Cuts, repr=False, compare=False)
    """How often which of these was passed, by all connections that go by this object."""
    totals: Totals = field(default_factory=Totals, repr=False, compare=False)
    """What they hold together."""

    def __post_init__(self) -> None:
        # A client may fill the window that all begin with before it learns of ours (RFC 9113 6.9.3).
        if self.window_bytes < WINDOW_BYTES:
            msg = f"window_bytes is {self.window_bytes}, less than {WINDOW_BYTES}"
            raise ValueError(msg)
        for name in _OF_A_TURN:
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}: nothing would be carried out in any turn"
                raise ValueError(msg)

    @property
    def http_body_bytes_max(self) -> int:
        """The largest body of a request that is no stream: twice the message, as base64 and names add to it."""
        return 2 * self.message_bytes_max
