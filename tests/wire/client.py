"""A small blocking client of an etcd endpoint, over grpcio and over http.client: every wait has an end.

It knows the methods and their messages, and nothing of what they mean: an answer is given as it came. grpcio and
the standard library stand for "any client" here, so nothing of the server's own transport is used.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from mvccstore.server.messages import METHODS

SECONDS = 10.0
"""How long to wait for any one answer."""

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server answers, gRPC and HTTP on one port."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """What gRPC dials."""
        return f"{self.host}:{self.port}"


class RpcFailure(Exception):  # noqa: N818 (the noun is gRPC's: a status that is not OK)
    """A call that ended with a status other than OK."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class StreamEnd(Exception):  # noqa: N818 (not an error: the server has said OK)
    """A stream that ended with OK: nothing more will come."""


def failure_of(error: grpc.RpcError) -> RpcFailure:
    """Read the status that grpcio raised."""
    return RpcFailure(error.code().name, error.details() or "")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer to an HTTP request."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        """Read the body."""
        return json.loads(self.body)


class Stream:
    """A streaming call that is under way; what the server sends is read by a thread of its own.

    One thread at a time may use it.
    """

    def __init__(self, call: Any, requests: queue.SimpleQueue[Message | None], *, takes_one: bool = False) -> None:
        self._call = call
        self._takes_one = takes_one
        self._requests = requests
        self._received: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for message in self._call:
                self._received.put(message)
        except grpc.RpcError as error:
            self._received.put(failure_of(error))
        else:
            self._received.put(StreamEnd())

    def send(self, *requests: Message) -> None:
        """Send requests."""
        for request in requests:
            self._requests.put(request)
        if self._takes_one:
            self.half_close()

    def half_close(self) -> None:
        """Say that no more requests will come; the server may go on answering."""
        self._requests.put(None)

    def receive(self, timeout: float = SECONDS) -> Any:
        """Return the next response.

        Raises:
            StreamEnd: The server ended the stream with OK.
            RpcFailure: It ended with another status.
            TimeoutError: Nothing came in `timeout` seconds.
        """
        try:
            received = self._received.get(timeout=timeout)
        except queue.Empty:
            msg = f"no response in {timeout} seconds"
            raise TimeoutError(msg) from None
        if isinstance(received, Exception):
            self._received.put(received)  # it stays ended
            raise received
        return received

    def take(self, number: int, timeout: float = SECONDS) -> list[Any]:
        """Return the next `number` responses, `timeout` seconds for each."""
        return [self.receive(timeout) for _ in range(number)]

    def pending(self) -> list[Any]:
        """Return what has come already, without waiting."""
        found: list[Any] = []
        with contextlib.suppress(queue.Empty):
            while True:
                received = self._received.get_nowait()
                if isinstance(received, Exception):
                    self._received.put(received)
                    break
                found.append(received)
        return found

    def cancel(self) -> None:
        """Break the call off, as a client that goes away does, and wait for the reader to notice."""
        self._call.cancel()
        self._requests.put(None)
        self._thread.join(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()


class Lines:
    """A streaming answer of the JSON gateway that is under way: one JSON value a line."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}

    def receive(self) -> Any:
        """Return the next value.

        Raises:
            StreamEnd: The answer is complete.
            TimeoutError: Nothing came for as long as the client was told to wait.
        """
        line = self._response.readline()
        if not line:
            raise StreamEnd
        return json.loads(line)

    def take(self, number: int) -> list[Any]:
        """Return the next `number` values."""
        return [self.receive() for _ in range(number)]

    def close(self) -> None:
        """Hang up."""
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Client:
    """One gRPC connection and one HTTP connection to an endpoint, made when they are first used.

    One thread at a time may use it; its streams and lines have connections or threads of their own.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._channel: grpc.Channel | None = None
        self._http: http.client.HTTPConnection | None = None
        self._streams: list[Stream | Lines] = []

    def close(self) -> None:
        """End its streams and hang up."""
        for stream in self._streams:
            if isinstance(stream, Stream):
                stream.cancel()
            else:
                stream.close()
        self._streams.clear()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._http is not None:
            self._http.close()
            self._http = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # gRPC

    def _dialled(self) -> grpc.Channel:
        if self._channel is None:
            options = [
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # Without this, all channels of the process to one address are one connection.
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ]
            self._channel = grpc.insecure_channel(self.endpoint.target, options=options)
        return self._channel

    def unary(self, method: str, request: Message | bytes, metadata: Metadata = (), timeout: float = SECONDS) -> Any:
        """Call a method that has one answer, and return it.

        Args:
            method: The full path, such as `/etcdserverpb.KV/Put`.
            request: Its message; or bytes, for those that are no message, and for methods that do not exist.

        Raises:
            RpcFailure: The status is not OK; `DEADLINE_EXCEEDED` after `timeout` seconds.
        """
        call = self._dialled().unary_unary(method, _serialize, _deserializer(method))
        try:
            return call(request, timeout=timeout, metadata=list(metadata), wait_for_ready=True)
        except grpc.RpcError as error:
            raise failure_of(error) from None

    def stream(
        self,
        method: str,
        requests: Iterable[Message] = (),
        metadata: Metadata = (),
        timeout: float | None = None,
        *,
        half_close: bool = False,
    ) -> Stream:
        """Begin a call of any streaming method; more requests may follow with `send`.

        Args:
            timeout: The call's deadline in seconds, as the server is told it. None: no deadline.
            half_close: Whether these are all requests; one is, where the method takes a single one.
        """
        outgoing: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        method_type = METHODS.get(method)
        takes_one = method_type is not None and not method_type.client_streaming
        number = 0
        for request in requests:
            outgoing.put(request)
            number += 1
        if half_close or (takes_one and number):
            outgoing.put(None)
        call = self._dialled().stream_stream(method, _serialize, _deserializer(method))
        begun = call(iter(outgoing.get, None), timeout=timeout, metadata=list(metadata), wait_for_ready=True)
        stream = Stream(begun, outgoing, takes_one=takes_one)
        self._streams.append(stream)
        return stream

    # HTTP

    def request(self, verb: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> HttpAnswer:
        """Ask over HTTP/1.1, on a connection that is kept."""
        if self._http is None:
            self._http = http.client.HTTPConnection(self.endpoint.host, self.endpoint.port, timeout=SECONDS)
        try:
            self._http.request(verb, path, body, headers or {})
            response = self._http.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return HttpAnswer(response.status, found, response.read())
        except (OSError, http.client.HTTPException):
            self._http.close()  # it connects again for the next request
            raise

    def post(self, path: str, body: object, headers: dict[str, str] | None = None) -> HttpAnswer:
        """Call a method of the JSON gateway: `body` is any JSON value, or bytes as they are."""
        return self.request("POST", path, _json(body), headers)

    def lines(self, path: str, body: object, headers: dict[str, str] | None = None, timeout: float = SECONDS) -> Lines:
        """Call a streaming method of the JSON gateway, on a connection of its own.

        Args:
            body: A JSON value, or bytes as they are: the gateway reads several values one after another.
            timeout: Seconds to wait for each line.
        """
        connection = http.client.HTTPConnection(self.endpoint.host, self.endpoint.port, timeout=timeout)
        try:
            connection.request("POST", path, _json(body), headers or {})
            lines = Lines(connection, connection.getresponse())
        except BaseException:
            connection.close()
            raise
        self._streams.append(lines)
        return lines


def _json(body: object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def _serialize(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def _deserializer(method: str) -> Any:
    method_type = METHODS.get(method)
    return None if method_type is None else method_type.response.FromString
