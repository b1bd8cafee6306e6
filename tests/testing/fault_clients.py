"""Client libraries of others behind one face, as they come and with the retries that they can be told to make."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

import aetcd
import grpc
import requests
from etcd3gw.client import Etcd3Client
from etcd3gw.exceptions import Etcd3Exception
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from mvccstore.server.messages import METHODS, rpc
from mvccstore.testing.etcd_server import Etcd

ATTEMPTS = 4
SECONDS = 20
RETRY_POLICY = {
    "maxAttempts": ATTEMPTS,
    "initialBackoff": "0.02s",
    "maxBackoff": "0.02s",
    "backoffMultiplier": 1,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
"""With a millisecond in place of twenty, grpcio 1.85 sometimes makes no second attempt, and waits for ever."""
SERVICE_CONFIG = json.dumps({"methodConfig": [{"name": [{"service": "etcdserverpb.KV"}], "retryPolicy": RETRY_POLICY}]})
PLAIN = {"grpc.use_local_subchannel_pool": 1, "grpc.enable_http_proxy": 0}


class Failed(Exception):  # noqa: N818 - the noun is ours: a call that a library has given up
    """A call that failed in the end, as its library says it."""


class FaultClient(ABC):
    """One client of a server."""

    def __init__(self, server: Etcd, *, retries: bool, credentials: tuple[str, str] | None = None) -> None:
        self.server = server
        self.retries = retries
        self.credentials = credentials

    @abstractmethod
    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None; raise `Failed`."""

    @abstractmethod
    def put(self, key: bytes, value: bytes) -> None:
        """Put a key; raise `Failed`."""

    @abstractmethod
    def close(self) -> None:
        """Hang up."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Grpcio(FaultClient):
    """Stubs of grpcio, which retries by a policy in the service config."""

    def __init__(self, server: Etcd, *, retries: bool, credentials: tuple[str, str] | None = None) -> None:
        super().__init__(server, retries=retries, credentials=credentials)
        options = PLAIN | ({"grpc.service_config": SERVICE_CONFIG} if retries else {"grpc.enable_retries": 0})
        self._channel = grpc.insecure_channel(server.endpoint, options=list(options.items()))
        self._metadata: list[tuple[str, str]] = []
        if credentials is not None:
            request = rpc.AuthenticateRequest(name=credentials[0], password=credentials[1])
            self._metadata = [("token", self._call("/etcdserverpb.Auth/Authenticate", request).token)]

    def _call(self, path: str, request: Any) -> Any:
        method = METHODS[path]
        function = self._channel.unary_unary(
            path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return function(request, timeout=SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            raise Failed(error.code().name) from error

    def get(self, key: bytes) -> bytes | None:
        kvs = self._call("/etcdserverpb.KV/Range", rpc.RangeRequest(key=key)).kvs
        return kvs[0].value if kvs else None

    def put(self, key: bytes, value: bytes) -> None:
        self._call("/etcdserverpb.KV/Put", rpc.PutRequest(key=key, value=value))

    def close(self) -> None:
        self._channel.close()


class Gateway(FaultClient):
    """etcd3gw, over JSON; its session retries if it is given an adapter that does."""

    def __init__(self, server: Etcd, *, retries: bool, credentials: tuple[str, str] | None = None) -> None:
        super().__init__(server, retries=retries, credentials=credentials)
        self.session = requests.Session()
        if retries:
            retry = Retry(
                ATTEMPTS - 1, status_forcelist=[503], allowed_methods=None, backoff_factor=0, raise_on_status=False
            )
            self.session.mount("http://", HTTPAdapter(max_retries=retry))
        self.client = Etcd3Client(
            host=server.host, port=server.port, api_path="/v3/", timeout=SECONDS, session=self.session
        )
        if credentials is not None:
            request = {"name": credentials[0], "password": credentials[1]}
            found = self.client.post(self.client.get_url("/auth/authenticate"), json=request)
            self.session.headers["Authorization"] = found["token"]

    def get(self, key: bytes) -> bytes | None:
        try:
            found = self.client.get(key)
        except (Etcd3Exception, requests.RequestException) as error:
            raise Failed(type(error).__name__) from error
        return found[0] if found else None

    def put(self, key: bytes, value: bytes) -> None:
        try:
            self.client.put(key, value)
        except (Etcd3Exception, requests.RequestException) as error:
            raise Failed(type(error).__name__) from error

    def close(self) -> None:
        self.session.close()


class Aetcd(FaultClient):
    """aetcd, on a loop of its own; its channel takes options, and so a policy of retries."""

    def __init__(self, server: Etcd, *, retries: bool, credentials: tuple[str, str] | None = None) -> None:
        super().__init__(server, retries=retries, credentials=credentials)
        options = PLAIN | ({"grpc.service_config": SERVICE_CONFIG} if retries else {"grpc.enable_retries": 0})
        name, password = credentials or (None, None)
        self._runner = asyncio.Runner()
        self.client = aetcd.Client(
            server.host, server.port, username=name, password=password, timeout=SECONDS, options=options
        )
        self.run(self.client.connect())

    def run(self, work: Any) -> Any:
        """Run a coroutine of the library's."""

        async def limited() -> Any:
            async with asyncio.timeout(SECONDS):
                return await work

        return self._runner.run(limited())

    def get(self, key: bytes) -> bytes | None:
        try:
            found = self.run(self.client.get(key))
        except (aetcd.ClientError, grpc.RpcError) as error:
            raise Failed(type(error).__name__) from error
        return None if found is None else found.value

    def put(self, key: bytes, value: bytes) -> None:
        try:
            self.run(self.client.put(key, value))
        except (aetcd.ClientError, grpc.RpcError) as error:
            raise Failed(type(error).__name__) from error

    def close(self) -> None:
        self.run(self.client.close())
        self._runner.close()


LIBRARIES: dict[str, type[FaultClient]] = {"grpcio": Grpcio, "etcd3gw": Gateway, "aetcd": Aetcd}
