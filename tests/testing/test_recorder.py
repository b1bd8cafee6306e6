"""The recorder in front of a real etcd: what passes is what would have passed without it."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from mvccstore.server.messages import METHODS, rpc
from mvccstore.server.transport.frames import DATA, END_HEADERS, HEADERS, PREFACE, frame
from mvccstore.server.transport.status import Code
from mvccstore.server.transport.tls import TLSOptions
from mvccstore.testing import etcd, record
from mvccstore.testing.cassette import Cassette, read_cassette
from mvccstore.testing.recorder import Recorder, Upstream, UpstreamError
from tests.oracle.process import QUICK_ELECTION, EtcdProcess, free_ports, running_etcd
from tests.testing.recording_kit import (
    AUTH,
    KEEP_ALIVE,
    KV,
    LEASE,
    SNAPSHOT,
    STATUS,
    WATCH,
    all_of,
    cancel,
    client_of,
    create,
    get,
    outcome,
    put,
)
from tests.wire.client import SECONDS, Client, Endpoint, RpcFailure
from tests.wire.tls_kit import Authority


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path_factory.mktemp("etcd"), QUICK_ELECTION) as process:
        yield process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.jsonl"


@pytest.fixture
def recorder(oracle: EtcdProcess, path: Path) -> Iterator[Recorder]:
    with record(oracle.target, path) as recorder:
        yield recorder
    assert recorder.notes == []


def gone(recorder: Recorder) -> None:
    """Return when no client is connected: they close their connections when they like."""
    while recorder.connections:
        recorder.settle()


def after(recorder: Recorder, path: Path) -> Cassette:
    recorder.stop()
    return read_cassette(path)


def test_the_head_says_which_etcd(recorder: Recorder, path: Path, oracle: EtcdProcess) -> None:
    release = ".".join(map(str, oracle.oracle.version))
    assert recorder.etcd == release
    assert after(recorder, path).etcd == release


def test_answers_and_errors_are_those_of_the_etcd(recorder: Recorder, path: Path, oracle: EtcdProcess) -> None:
    requests: list[tuple[str, Any]] = [
        (KV + "Range", get(b"answers/a")),
        (KV + "Range", get(b"")),
        (KV + "Range", get(b"a", revision=1 << 40)),
        (KV + "Txn", rpc.TxnRequest(success=[rpc.RequestOp(request_range=get(b"a"))])),
        (LEASE + "LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=77)),
        (LEASE + "LeaseRevoke", rpc.LeaseRevokeRequest(ID=77)),
        (AUTH + "Authenticate", rpc.AuthenticateRequest(name="x", password="y")),
        ("/etcdserverpb.KV/None", b"x"),
        ("/no.Service/None", b"x"),
    ]
    with Client(Endpoint(oracle.host, oracle.port)) as direct, client_of(recorder) as through:
        for method, request in requests:
            assert outcome(lambda m=method, r=request: through.unary(m, r)) == outcome(
                lambda m=method, r=request: direct.unary(m, r)
            )
    calls = after(recorder, path).calls
    assert [call.path for call in calls] == [method for method, _ in requests]
    assert [call.code for call in calls][-2:] == [Code.UNIMPLEMENTED, Code.UNIMPLEMENTED]


def test_metadata_and_trailers_pass(recorder: Recorder, oracle: EtcdProcess) -> None:
    found = []
    for target in (oracle.target, recorder.endpoint):
        with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(KV + "Put", None, None)
            answered = call.future(b"\n\1m\x12\1v", metadata=[("hasleader", "true"), ("x-bin", b"\0")])
            refused = call.future(b"", metadata=[("hasleader", "true")])
            assert answered.code() == grpc.StatusCode.OK
            found.append(
                [
                    (each.initial_metadata(), each.trailing_metadata(), each.code(), each.details())
                    for each in (answered, refused)
                ]
            )
    assert found[0] == found[1]


def test_metadata_is_named_and_not_told(recorder: Recorder, path: Path) -> None:
    with client_of(recorder) as client:
        client.unary(KV + "Range", get(b"a"), [("hasleader", "true"), ("x-key", "hunter2"), ("token", "hunter2")])
    (call,) = after(recorder, path).calls
    assert call.metadata == {"hasleader": "true", "x-key": "redacted", "token": "redacted"}
    assert b"hunter2" not in path.read_bytes()


def test_streams_pass_both_ways(recorder: Recorder, path: Path) -> None:
    with client_of(recorder) as client:
        grant = client.unary(LEASE + "LeaseGrant", rpc.LeaseGrantRequest(TTL=100))
        with client.stream(WATCH, [create(b"streams/", range_end=b"streams0", prev_kv=True)]) as watch:
            assert watch.receive().created
            client.unary(KV + "Put", put(b"streams/a", b"1", lease=grant.ID))
            assert watch.receive().events[0].kv.value == b"1"
            watch.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            assert not watch.receive().events
            watch.send(cancel(0))
            assert watch.receive().canceled
        with client.stream(KEEP_ALIVE) as stream:
            for _ in range(3):
                stream.send(rpc.LeaseKeepAliveRequest(ID=grant.ID))
                assert stream.receive().TTL == 100
            stream.half_close()
            assert all_of(stream) == ["StreamEnd()"]
        client.unary(LEASE + "LeaseRevoke", rpc.LeaseRevokeRequest(ID=grant.ID))
        snapshot = all_of(client.stream(SNAPSHOT, [rpc.SnapshotRequest()]))
        assert len(snapshot) > 2
        assert "UNIMPLEMENTED" in str(all_of(client.stream(KV + "RangeStream", [get(b"streams/a")]))[0])
    calls = {call.path: call for call in after(recorder, path).calls}
    kinds = [part.kind for part in calls[WATCH].parts]
    assert kinds == ["request", "answer", "answer", "request", "answer", "request", "answer"]
    assert calls[WATCH].ended_by == "client"
    assert [part.encoded for part in calls[SNAPSHOT].answers] == snapshot[:-1]
    assert [part.kind for part in calls[KEEP_ALIVE].parts] == ["request", "answer"] * 3 + ["half_close"]
    assert calls[KEEP_ALIVE].code == Code.OK
    assert calls[KV + "RangeStream"].code == Code.UNIMPLEMENTED


def test_compressed_messages_are_read(recorder: Recorder, path: Path) -> None:
    with grpc.insecure_channel(recorder.endpoint, compression=grpc.Compression.Gzip) as channel:
        call = channel.unary_unary(KV + "Put", rpc.PutRequest.SerializeToString, rpc.PutResponse.FromString)
        call(put(b"gzip", b"x" * 10_000), timeout=SECONDS)
    (read,) = after(recorder, path).calls
    assert rpc.PutRequest.FromString(read.requests[0]).value == b"x" * 10_000
    assert rpc.PutResponse.FromString(read.answers[0].encoded).header.revision > 0


def test_the_gateway_passes_and_is_read_as_calls(recorder: Recorder, path: Path, oracle: EtcdProcess) -> None:
    bodies = [
        ("/v3/kv/put", {"key": "anNvbg==", "value": "/w=="}),
        ("/v3/kv/range", {"key": "anNvbg=="}),
        ("/v3/kv/put", {}),
        ("/v3/kv/range", b"{"),
        ("/v3/none", {}),
    ]
    with Client(Endpoint(oracle.host, oracle.port)) as direct, client_of(recorder) as through:
        for target, body in bodies:
            theirs, ours = (client.post(target, body) for client in (direct, through))
            assert (ours.status, ours.headers.keys()) == (theirs.status, theirs.headers.keys())
            if target != "/v3/kv/put":
                assert ours.body == theirs.body
        for page in ("/version", "/health", "/none"):
            assert through.request("GET", page).body == direct.request("GET", page).body
        with through.lines("/v3/watch", {"create_request": {"key": "anNvbg==", "start_revision": "1"}}) as lines:
            assert lines.receive()["result"]["created"]
            assert lines.receive()["result"]["events"]
    gone(recorder)
    calls = after(recorder, path).calls
    assert [call.path.rpartition("/")[2] for call in calls] == ["Put", "Range", "Put", "Range", "Watch"]
    assert calls[0].requests == [put(b"json", b"\xff").SerializeToString()]
    assert rpc.RangeResponse.FromString(calls[1].answers[0].encoded).kvs[0].value == b"\xff"
    assert (calls[2].code, calls[2].message) == (Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
    assert calls[3].code == Code.INVALID_ARGUMENT
    assert (len(calls[4].answers), calls[4].ended_by) == (2, "client")


def test_pipelined_requests_are_read_in_order(recorder: Recorder, path: Path) -> None:
    request = b'POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"key":"%bQ=="}'
    with socket.create_connection((recorder.host, recorder.port), timeout=SECONDS) as sock:
        sock.sendall(b"".join(request % letter for letter in (b"Y", b"Z", b"e")))
        said = b""
        while said.count(b"HTTP/1.1 200") < 3 or not said.endswith(b"}"):
            said += sock.recv(65_536)
    keys = [rpc.RangeRequest.FromString(call.requests[0]).key for call in after(recorder, path).calls]
    assert keys == [b"a", b"e", b"y"]


def test_a_web_socket_passes_and_is_noted(oracle: EtcdProcess, path: Path) -> None:
    with record(oracle.target, path) as recorder:
        connection = http.client.HTTPConnection(recorder.host, recorder.port, timeout=SECONDS)
        headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        connection.request("GET", "/v3/watch", headers=headers | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="})
        assert connection.getresponse().status == 101
        connection.close()
        recorder.settle()
    assert "WebSocket" in recorder.notes[0]


def test_what_is_not_understood_passes(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)

        def serve() -> None:
            asked, _ = listener.accept()  # for the version
            with asked:
                asked.recv(1_000)
            told, _ = listener.accept()
            with told:
                told.sendall(told.recv(1_000).upper())

        thread = threading.Thread(target=serve)
        thread.start()
        with record(f"127.0.0.1:{listener.getsockname()[1]}", path) as recorder:
            assert recorder.etcd == ""
            with socket.create_connection((recorder.host, recorder.port), timeout=SECONDS) as sock:
                said = PREFACE + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff no block")
                sock.sendall(said)
                assert sock.recv(1_000) == said.upper()
        thread.join(SECONDS)
    assert recorder.notes[0].startswith("a connection is not recorded any further")
    assert read_cassette(path).calls == ()


@contextlib.contextmanager
def echoing() -> Iterator[str]:
    """A server that says what it is told, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            listener.accept()[0].close()  # for the version
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    while data := connection.recv(65_536):
                        connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(SECONDS)


def mutilated(random: Random) -> bytes:
    """Return what a client says, not quite."""
    block = b"\x83\x86\x44\x14" + b"/etcdserverpb.KV/Put" + b"\x5f\x10application/grpc"
    grpc_call = PREFACE + frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, 1, 1, b"\0\0\0\0\5\n\1a\x12\0") * 3
    json_call = b'POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"key":"YQ=="}' * 3
    said = bytearray(random.choice([grpc_call, json_call]))
    for _ in range(random.randrange(8)):
        at = random.randrange(4, len(said))
        if random.random() < 0.5:
            said[at] = random.randrange(256)
        else:
            said[at:at] = random.randbytes(random.randrange(20))
    return bytes(said)


def test_whatever_is_said_passes_unchanged(path: Path) -> None:
    random = Random(18)
    with echoing() as address, record(address, path) as recorder:
        for _ in range(200):
            said = mutilated(random)
            with socket.create_connection((recorder.host, recorder.port), timeout=SECONDS) as sock:
                sock.sendall(said)
                heard = b""
                while len(heard) < len(said):
                    heard += sock.recv(65_536)
            assert heard == said
        gone(recorder)
    assert len(recorder.notes) > 20
    calls = read_cassette(path).calls
    assert len(calls) > 20
    assert all(call.ended is not None for call in calls)


def test_many_clients_at_once(recorder: Recorder, path: Path) -> None:
    def play(number: int) -> None:
        with client_of(recorder) as client, client.stream(WATCH, [create(b"many/%d" % number)]) as watch:
            watch.receive()
            for value in range(20):
                client.unary(KV + "Put", put(b"many/%d" % number, b"%d" % value))
            values = [event.kv.value for _ in range(20) for event in watch.receive().events]
            assert values == [b"%d" % value for value in range(20)]

    threads = [threading.Thread(target=play, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    calls = after(recorder, path).calls
    puts = [rpc.PutRequest.FromString(call.requests[0]) for call in calls if call.path == KV + "Put"]
    for number in range(8):
        values = [each.value for each in puts if each.key == b"many/%d" % number]
        assert values == [b"%d" % value for value in range(20)]
    assert all(call.answers for call in calls)


def test_a_client_that_goes_takes_its_calls_along(recorder: Recorder, path: Path, oracle: EtcdProcess) -> None:
    lock = METHODS["/v3lockpb.Lock/Lock"].request
    with client_of(recorder) as client, Client(Endpoint(oracle.host, oracle.port)) as direct:
        direct.unary("/v3lockpb.Lock/Lock", lock(name=b"gone"))
        waiting = client.stream("/v3lockpb.Lock/Lock", [lock(name=b"gone")])
        while direct.unary(KV + "Range", get(b"gone", range_end=b"gonf")).count < 2:
            pass  # until it waits for the first
        waiting.cancel()
        client.stream(WATCH, [create(b"gone")]).receive()
    gone(recorder)
    calls = after(recorder, path).calls
    assert [(call.path, call.ended_by) for call in calls] == [("/v3lockpb.Lock/Lock", "client"), (WATCH, "client")]
    assert not calls[0].answers


def test_stopping_completes_the_cassette(recorder: Recorder, path: Path) -> None:
    with client_of(recorder) as client:
        watch = client.stream(WATCH, [create(b"stop")])
        watch.receive()
        calls = after(recorder, path).calls
        with pytest.raises(RpcFailure, match="UNAVAILABLE"):
            watch.receive()
    assert [(call.path, call.ended_by, len(call.answers)) for call in calls] == [(WATCH, "recorder", 1)]
    recorder.stop()  # again


def test_an_upstream_that_goes_away(tmp_path: Path, path: Path) -> None:
    with (
        running_etcd(tmp_path / "etcd", QUICK_ELECTION) as oracle,
        record(oracle.target, path) as recorder,
        client_of(recorder) as client,
    ):
        watch = client.stream(WATCH, [create(b"a")])
        watch.receive()
        oracle.kill()
        with pytest.raises(RpcFailure, match="UNAVAILABLE"):
            watch.receive()
        with pytest.raises(RpcFailure, match=r"DEADLINE_EXCEEDED|UNAVAILABLE"):
            client.unary(KV + "Put", put(b"a"), timeout=0.5)
        oracle.start()
        client.unary(KV + "Put", put(b"a"))
    calls = read_cassette(path).calls
    assert (calls[0].ended_by, calls[0].code) == ("upstream", Code.UNAVAILABLE)
    assert (calls[-1].path, calls[-1].code) == (KV + "Put", Code.OK)
    assert any("cannot be reached" in note for note in recorder.notes)


def test_an_upstream_that_is_not_there(path: Path) -> None:
    (port,) = free_ports(1)
    with (
        pytest.raises(UpstreamError, match=f"http://127.0.0.1:{port} cannot be reached"),
        record(f"127.0.0.1:{port}", path),
    ):
        pass
    assert not path.exists()


def test_a_file_that_is_there_is_not_replaced(oracle: EtcdProcess, path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(FileExistsError), record(oracle.target, path):
        pass
    assert path.read_text() == "mine"
    with record(oracle.target, path, overwrite=True):
        pass
    assert read_cassette(path).calls == ()


def test_who_does_not_read_holds_up_the_upstream_alone(path: Path) -> None:
    """What waits in the recorder is bounded, however much there is."""
    total = 256 << 20
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        threading.Thread(target=lambda: listener.accept()[0].close()).start()  # for the version
        with record(f"127.0.0.1:{listener.getsockname()[1]}", path) as recorder:
            reader = socket.create_connection((recorder.host, recorder.port), timeout=SECONDS)
            reader.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            writer, _ = listener.accept()
            with reader, writer:
                writer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
                writer.setblocking(False)
                block, sent = bytes(1 << 20), 0
                while sent < total and select.select([], [writer], [], 1.0)[1]:
                    sent += writer.send(block)
                assert sent < total // 4  # what the system's buffers hold
                # Once it reads, everything comes.
                got, end = 0, total
                while got < end:
                    while sent < total and select.select([], [writer], [], 0)[1]:
                        sent += writer.send(block[: total - sent])
                    got += len(reader.recv(1 << 20))
                assert got >= end
    assert read_cassette(path).calls == ()


def test_tls_on_both_sides(tmp_path: Path, path: Path) -> None:
    authority = Authority(tmp_path)
    ca = str(authority.file)
    server, ours, client = (authority.issue(name, ["localhost", "127.0.0.1"]) for name in ("etcd", "recorder", "me"))
    options = TLSOptions(str(server.certificate), str(server.key), trusted_ca_file=ca, client_cert_auth=True)
    with etcd(tls=options) as upstream:
        settings = {"ca_file": ca, "cert_file": str(client.certificate), "key_file": str(client.key)}
        with record(upstream.url, path, tls=TLSOptions(str(ours.certificate), str(ours.key)), **settings) as recorder:
            assert recorder.url.startswith("https://")
            credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
            with grpc.secure_channel(recorder.endpoint, credentials) as channel:
                call = channel.unary_unary(KV + "Put", rpc.PutRequest.SerializeToString, rpc.PutResponse.FromString)
                assert call(put(b"a"), timeout=SECONDS).header.revision == 2
            context = ssl.create_default_context(cafile=ca)
            connection = http.client.HTTPSConnection(recorder.host, recorder.port, timeout=SECONDS, context=context)
            connection.request("POST", "/v3/kv/range", b'{"key":"YQ=="}')
            assert connection.getresponse().status == 200
            connection.close()
        with pytest.raises(UpstreamError, match="cannot be reached"), record(upstream.url, tmp_path / "other"):
            pass
    assert [call.path for call in read_cassette(path).calls] == [KV + "Put", KV + "Range"]


@pytest.mark.parametrize("address", ["", "localhost", "ftp://a:1", "http://a:1/x", "a:99999", "http://:1"])
def test_an_address_that_is_none_is_refused(address: str, path: Path) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        Recorder(address, path)


def test_certificates_are_for_https(path: Path) -> None:
    with pytest.raises(ValueError, match="certificates are for https"):
        Recorder("a:1", path, ca_file="ca.pem")
    assert str(Upstream.of("https://[::1]:2379")) == "https://[::1]:2379"
    with pytest.raises(ValueError, match="'localhost' is not host:port"):
        Recorder("a:1", path, listen="localhost")


def test_passwords_and_tokens_are_not_written(path: Path) -> None:
    with (
        etcd(auth={"alice": "hunter2"}) as server,
        record(server.endpoint, path) as recorder,
        client_of(recorder) as client,
    ):
        asked = rpc.AuthenticateRequest(name="alice", password="hunter2")
        token = client.unary(AUTH + "Authenticate", asked).token
        client.unary(KV + "Put", put(b"a"), [("token", token)])
        answer = client.post("/v3/auth/authenticate", {"name": "alice", "password": "hunter2"}).json()
        client.post("/v3/kv/range", {"key": "YQ=="}, {"Authorization": answer["token"]})
        with contextlib.suppress(RpcFailure):
            client.unary(STATUS, rpc.StatusRequest())
    written = path.read_text()
    assert "alice" in written
    for secret in ("hunter2", token, answer["token"]):
        assert secret not in written
