"""Who a server is in its cluster of one: names, URLs, and the ids that etcd makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1

from mvccstore.server.persona import V3_6


def member_id(peer_urls: tuple[str, ...], token: str, time_seconds: int | None = None) -> int:
    """Return the id etcd gives a member: by its sorted peer URLs and the token, or the time it was added at.

    >>> member_id(("http://127.0.0.1:35380",), "etcd-cluster")
    3982666145420501407
    """
    text = "".join(sorted(peer_urls)) + token + ("" if time_seconds is None else str(time_seconds))
    return int.from_bytes(sha1(text.encode(), usedforsecurity=False).digest()[:8])


def cluster_id(member_ids: tuple[int, ...]) -> int:
    """Return the id etcd gives a cluster: by its first members.

    >>> cluster_id((3982666145420501407,))
    14565263882120753975
    """
    packed = b"".join(number.to_bytes(8) for number in sorted(member_ids))
    return int.from_bytes(sha1(packed, usedforsecurity=False).digest()[:8])


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server is told about itself."""

    name: str = "default"
    peer_urls: tuple[str, ...] = ("http://localhost:2380",)
    client_urls: tuple[str, ...] = ("http://localhost:2379",)
    token: str = "etcd-cluster"
    version: str = V3_6.release
    """The etcd release it says it is; a server that behaves as an older etcd takes the default for that one's."""

    @property
    def member_id(self) -> int:
        """Its own id."""
        return member_id(self.peer_urls, self.token)

    @property
    def cluster_id(self) -> int:
        """That of its cluster, in which it is the first."""
        return cluster_id((self.member_id,))

    @property
    def cluster_version(self) -> str:
        """Major and minor, as 3.6 says it."""
        return ".".join(self.version.split(".")[:2])

    @property
    def storage_version(self) -> str:
        """That of the format it says it stores in."""
        return f"{self.cluster_version}.0"
