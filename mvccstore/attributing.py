"""The attributes of a store, read and changed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import closing

from mvccstore.attributes import Attributes, AttributesResult, attributes_request, check_attribute_name
from mvccstore.engine import Engine
from mvccstore.mvcc import attributes as rules
from mvccstore.types import Result, WriteRequest
from mvccstore.view import View


class Attributing(View):
    """The part of `Store` that has attributes."""

    __slots__ = ()

    _engine: Engine
    _path: str

    @abstractmethod
    def _check_open(self) -> None:
        """Raise if the store is closed."""

    @abstractmethod
    def _check_writable(self) -> None:
        """Raise if the store is closed or read-only."""

    @abstractmethod
    def _submit(self, request: WriteRequest) -> Result:
        """Have a write carried out."""

    def attribute(self, name: str) -> bytes | None:
        """Return the value of an attribute; None if there is none of this name.

        Args:
            name: Of 1 to 255 bytes in UTF-8.

        Cost: one lookup.
        """
        check_attribute_name(name)
        self._check_open()
        with closing(self._engine.read()) as txn:
            return rules.load(txn, name, self._path)

    def attributes(self, prefix: str = "") -> Attributes:
        """Return the attributes whose names begin with `prefix`, and the version they were read at, consistently.

        Cost: O(those).
        """
        if type(prefix) is not str:
            msg = f"prefix is a {type(prefix).__name__}, not a str"
            raise TypeError(msg)
        self._check_open()
        with closing(self._engine.read()) as txn:
            return rules.load_all(txn, prefix, self._path)

    def set_attributes(self, changes: Mapping[str, bytes | None], *, base: int | None = None) -> int:
        """Set attributes, all of them or none; return their new version.

        An attribute is a small named value of the store itself: no key of the user's, without revisions, unseen by
        watches, untouched by compaction and by the quota. Backups and copies have them.

        Args:
            changes: Values by name; None deletes, and deletes what does not exist, too. Names have 1 to 255 bytes
                in UTF-8, values up to 1 MiB. Without any, nothing happens.
            base: The version that the changes are made from (`attributes().version`); whatever has been changed
                since, by whomever, it raises. None changes them in any case.

        Raises:
            AttributesConflictError: The version is not `base`; nothing happened.
            TxnTooLargeError: More than 10,000 changes.
            ValueTooLargeError: A value is larger than 1 MiB.
            AttributesTooLargeError: All together would be larger than 64 MiB.
            StorageFullError: The disk is full; nothing happened.

        Cost: one commit; no revision.

        >>> import mvccstore
        >>> store = mvccstore.open()
        >>> store.set_attributes({"theme": b"dark", "language": b"en"})
        1
        >>> read = store.attributes()
        >>> store.set_attributes({"theme": None}, base=read.version)
        2
        >>> store.attribute("theme") is None, dict(store.attributes())
        (True, {'language': b'en'})
        """
        request = attributes_request(changes, base)
        self._check_writable()
        result = self._submit(request)
        assert isinstance(result, AttributesResult)
        return result.version
