"""The members of the cluster, of which one is this server and no other ever comes up.

Kept as attributes of the store, so that whoever adds a member finds it again. What a real cluster of one would do
after a second voter was added is to stop, as two of two are a majority; this one goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from urllib.parse import urlsplit

from mvccstore.etcd_file.buckets import MemberRecord, decode_member, encode_member, encode_member_id
from mvccstore.server.errors import Refusal
from mvccstore.server.member import Identity, member_id
from mvccstore.store import Store

_PREFIX = "etcd/member/"
_REMOVED = "etcd/removed/"
_UNIX_SCHEMES = frozenset({"unix", "unixs"})
# The port has to be there, though it may be empty: Go splits host and port at a colon.
_ADDRESS = re.compile(r"""(?:[^@]*@)?(?:\[[^\s\[\]]*\]|[\w.~!$&'()*+,;=<>"-]*):[0-9]*""")


class Members:
    """The members, and what may be done to them. Each change is returned as attributes to set; what is set is what is.

    Used on any thread, but for `advertise`.
    """

    def __init__(self, store: Store, identity: Identity, learners_max: int) -> None:
        self._store = store
        self._learners_max = learners_max
        self._as_started = MemberRecord(identity.member_id, identity.peer_urls, identity.name, identity.client_urls)

    def advertise(self, client_urls: tuple[str, ...]) -> None:
        """Note where clients reach this member, now that it listens."""
        self._as_started = replace(self._as_started, client_urls=client_urls)

    @property
    def own(self) -> MemberRecord:
        """This one. O(attributes of members), as the others."""
        return self.find(self._as_started.id)

    def all(self) -> list[MemberRecord]:
        """Return the members, by id."""
        own = self._as_started
        members = {own.id: own}
        for name, packed in self._store.attributes(_PREFIX).items():
            member = _unpack(int(name.removeprefix(_PREFIX), 16), packed)
            # Of our own, what is stored is the peer URLs, if they were changed since it was first started.
            members[member.id] = replace(own, peer_urls=member.peer_urls) if member.id == own.id else member
        return sorted(members.values(), key=lambda member: member.id)

    def removed(self) -> list[int]:
        """Return the ids of those that were."""
        return [int(name.removeprefix(_REMOVED), 16) for name in self._store.attributes(_REMOVED)]

    def find(self, number: int) -> MemberRecord:
        """Return a member.

        Raises:
            RpcError: There is none of this id.
        """
        for member in self.all():
            if member.id == number:
                return member
        raise Refusal.MEMBER_NOT_FOUND.error()

    def add(
        self, urls: Iterable[str], time_seconds: int, *, is_learner: bool
    ) -> tuple[MemberRecord, dict[str, bytes | None]]:
        """Return a new member, and what to set."""
        peer_urls = check_urls(urls)
        members = self.all()
        voters = [member for member in members if not member.is_learner]
        started = sum(bool(member.name) for member in voters)
        # One of two is allowed: how a cluster of one is restored.
        if not is_learner and not (len(voters) == 1 and started == 1) and started < (len(voters) + 1) // 2 + 1:
            raise Refusal.NOT_ENOUGH_STARTED.error()
        number = member_id(peer_urls, "", time_seconds)
        if any(member.id == number for member in members):
            raise Refusal.MEMBER_EXISTS.error()
        _check_unused(peer_urls, members)
        if is_learner and sum(member.is_learner for member in members) >= self._learners_max:
            raise Refusal.TOO_MANY_LEARNERS.error()
        member = MemberRecord(number, peer_urls, is_learner=is_learner)
        return member, {_name(number): encode_member(member)[1]}

    def remove(self, number: int) -> dict[str, bytes | None]:
        """Return what to set to remove a member."""
        member = self.find(number)
        if not member.is_learner:
            others = [other for other in self.all() if not other.is_learner and other.id != number]
            if sum(bool(other.name) for other in others) < len(others) // 2 + 1:
                raise Refusal.NOT_ENOUGH_STARTED.error()
        return {_name(number): None, f"{_REMOVED}{number:x}": b"removed"}

    def update(self, number: int, urls: Iterable[str]) -> dict[str, bytes | None]:
        """Return what to set to give a member other peer URLs."""
        # They are taken as they are: etcd looks at those of a new member only.
        peer_urls = tuple(urls)
        member = self.find(number)
        _check_unused(peer_urls, [other for other in self.all() if other.id != number])
        return {_name(number): encode_member(replace(member, peer_urls=peer_urls))[1]}

    def promote(self, number: int) -> None:
        """Refuse to promote a member: a learner that never comes up is never in sync."""
        raise (Refusal.LEARNER_NOT_READY if self.find(number).is_learner else Refusal.NOT_LEARNER).error()


def check_urls(urls: Iterable[str]) -> tuple[str, ...]:
    """Return peer URLs, sorted.

    Raises:
        RpcError: There are none, or one is neither http(s)://host:port nor of a unix socket.
    """
    found = tuple(sorted(url.strip() for url in urls))
    if not found:
        raise Refusal.BAD_MEMBER_URLS.error()
    for url in found:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise Refusal.BAD_MEMBER_URLS.error() from None
        is_address = parts.scheme in {"http", "https"} and not parts.path and _ADDRESS.fullmatch(parts.netloc)
        if not is_address and parts.scheme not in _UNIX_SCHEMES:
            raise Refusal.BAD_MEMBER_URLS.error()
    return found


def _check_unused(urls: tuple[str, ...], members: Iterable[MemberRecord]) -> None:
    for member in members:
        if not set(urls).isdisjoint(member.peer_urls):
            raise Refusal.PEER_URL_EXISTS.error()


def _name(number: int) -> str:
    return f"{_PREFIX}{number:x}"


def _unpack(number: int, packed: bytes) -> MemberRecord:
    return decode_member(encode_member_id(number), packed)
