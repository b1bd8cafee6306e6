"""Writing: what a store and a transaction block have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, SupportsIndex, overload

from mvccstore.mvcc.validate import check_keys_size, check_put
from mvccstore.options import Limits
from mvccstore.types import DeleteRequest, DeleteResult, Keys, PutRequest, PutResult, lease_id_of
from mvccstore.view import View


class WritableView(View):
    """The writing half of `Store` and `Txn`."""

    __slots__ = ()

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """The largest requests accepted."""

    @abstractmethod
    def _put(self, request: PutRequest) -> PutResult:
        """Carry out a put that is known to be well-formed."""

    @abstractmethod
    def _delete(self, request: DeleteRequest) -> DeleteResult:
        """Carry out a delete that is known to be well-formed."""

    @overload
    def put(
        self,
        key: bytes,
        value: bytes = ...,
        *,
        lease: SupportsIndex = ...,
        prev_kv: Literal[False] = ...,
        ignore_value: bool = ...,
        ignore_lease: bool = ...,
    ) -> int: ...
    @overload
    def put(
        self,
        key: bytes,
        value: bytes = ...,
        *,
        lease: SupportsIndex = ...,
        prev_kv: Literal[True],
        ignore_value: bool = ...,
        ignore_lease: bool = ...,
    ) -> PutResult: ...
    def put(
        self,
        key: bytes,
        value: bytes = b"",
        *,
        lease: SupportsIndex = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
    ) -> int | PutResult:
        """Set a key, and return the revision that did it.

        One atomic step, durable as the store was opened to be; in a transaction block a part of the block's
        step, and a key may be set again. A put of the same value is a change, too.

        Args:
            key: Not empty, at most `limits.key_bytes_max` bytes.
            value: At most `limits.value_bytes_max` bytes; may be empty.
            lease: The lease to attach the key to, or its id; 0 detaches it from any.
            prev_kv: Return a `PutResult` with the key as it was before.
            ignore_value: Keep the value, which must not be given then.
            ignore_lease: Keep the lease, which must not be given then.

        Raises:
            KeyTooLargeError, ValueTooLargeError: Over the limit.
            LeaseNotFoundError: There is no such lease.
            KeyNotFoundError: There is nothing to keep.
            StorageFullError: Disk or quota is full; nothing happened.

        Cost: three lookups and two writes; and, outside of a block, one commit, shared with what other threads
        write meanwhile.
        """
        request = PutRequest(key, value, lease_id_of(lease), prev_kv, ignore_value, ignore_lease)
        check_put(request, self.limits)
        result = self._put(request)
        return result if prev_kv else result.revision

    @overload
    def delete(self, keys: Keys, *, prev_kv: Literal[False] = ...) -> int: ...
    @overload
    def delete(self, keys: Keys, *, prev_kv: Literal[True]) -> DeleteResult: ...
    def delete(self, keys: Keys, *, prev_kv: bool = False) -> int | DeleteResult:
        """Delete every key in a range, and return how many there were.

        One atomic step: all of them go in one revision, in key order; none, and there is no new revision.

        Args:
            keys: A key or a `KeyRange`.
            prev_kv: Return a `DeleteResult` with the revision and the keys as they were.

        Raises:
            StorageFullError: The disk is full; nothing happened. A full quota does not stop deletes.

        Cost: two lookups and two writes a key; and, outside of a block, one commit.
        """
        request = DeleteRequest(keys, prev_kv)
        check_keys_size(keys, self.limits)
        result = self._delete(request)
        return result if prev_kv else result.deleted
