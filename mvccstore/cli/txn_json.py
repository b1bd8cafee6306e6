"""A transaction and its result as JSON.

The form follows `Compare` and `Op`: what may be left out there may be left out here. Anything unknown is an
error that says where it stands, because a misspelt option that is passed over is a wrong transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import mvccstore
from mvccstore.cli.keys import from_json
from mvccstore.cli.output import row_json
from mvccstore.types import Request, Response, TxnRequest

HELP = """\b
The transaction:
  {"compare": [COMPARE, ...], "success": [OP, ...], "failure": [OP, ...]}
\b
KEYS are one of
  "key": "k"                  exactly this key
  "prefix": "p"               every key that begins so
  "start": "a", "end": "b"    from a up to b; without an end, all from a on
COMPARE is KEYS, one target, and maybe "operator": "==" (default), "!=", ">", "<"
  {"key": "k", "value": "v"}              {"key": "k", "version": 0}
  {"key": "k", "create_revision": 5}      {"key": "k", "mod_revision": 5, "operator": "<"}
  {"prefix": "p", "lease": 7, "operator": "!="}
  version 0 means: does not exist. A range holds if all its keys do.
OP is one of
  {"put": {"key": "k", "value": "v"}}
     and lease, prev_kv, ignore_value, ignore_lease
  {"delete": {KEYS}}
     and prev_kv
  {"range": {KEYS}}
     and revision, limit, order_by (key, version, create, mod, value), descending, keys_only,
     count_only, min_mod_revision, max_mod_revision, min_create_revision, max_create_revision
  {"txn": {"compare": [...], "success": [...], "failure": [...]}}
\b
Bytes that are not UTF-8 go as base64 into key_b64, value_b64, prefix_b64, start_b64, end_b64.
\b
Example: take a job if it is still queued, otherwise look at it
  {"compare": [{"key": "jobs/1", "value": "queued"}],
   "success": [{"put": {"key": "jobs/1", "value": "taken"}}],
   "failure": [{"range": {"key": "jobs/1"}}]}
"""

_Operator = Literal["==", "!=", ">", "<"]
_OPERATORS: tuple[_Operator, ...] = get_args(_Operator)
_NUMBER_TARGETS = ("version", "create_revision", "mod_revision", "lease")
_KEYS = frozenset({"key", "key_b64", "prefix", "prefix_b64", "start", "start_b64", "end", "end_b64"})
_FLAGS = frozenset({"prev_kv", "ignore_value", "ignore_lease", "descending", "keys_only", "count_only"})
_PUT = frozenset({"key", "key_b64", "value", "value_b64", "lease", "prev_kv", "ignore_value", "ignore_lease"})
_RANGE_NUMBERS = frozenset(
    {"revision", "limit", "min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"}
)
_RANGE = _KEYS | _RANGE_NUMBERS | {"order_by", "descending", "keys_only", "count_only"}


def parse(text: bytes) -> TxnRequest:
    """Return the transaction that some JSON stands for.

    Raises:
        ValueError: It is not JSON, or not a transaction; the message says where.
    """
    try:
        document = json.loads(text)
        return _txn(document, "")
    except RecursionError as error:
        msg = "nested too deeply"
        raise ValueError(msg) from error


def result_json(result: mvccstore.TxnResult) -> dict[str, object]:
    """Return a result as JSON can hold it."""
    return {
        "succeeded": result.succeeded,
        "revision": result.revision,
        "responses": [_response_json(response) for response in result.responses],
    }


def _response_json(response: Response) -> dict[str, object]:
    match response:
        case mvccstore.PutResult():
            before = None if response.prev_kv is None else row_json(response.prev_kv)
            return {"put": {"revision": response.revision, "prev_kv": before}}
        case mvccstore.DeleteResult():
            befores = [row_json(kv) for kv in response.prev_kvs]
            return {"delete": {"revision": response.revision, "deleted": response.deleted, "prev_kvs": befores}}
        case mvccstore.RangeResult():
            rows = [row_json(kv) for kv in response.kvs]
            return {
                "range": {"revision": response.revision, "count": response.count, "more": response.more, "kvs": rows}
            }
        case mvccstore.TxnResult():
            return {"txn": result_json(response)}


def _txn(given: object, where: str) -> TxnRequest:
    fields = _object(given, where, frozenset({"compare", "success", "failure"}))
    return mvccstore.Op.txn(
        compare=[_compare(member, place) for member, place in _members(fields, "compare", where)],
        success=[_operation(member, place) for member, place in _members(fields, "success", where)],
        failure=[_operation(member, place) for member, place in _members(fields, "failure", where)],
    )


def _members(fields: Mapping[str, Any], name: str, where: str) -> list[tuple[object, str]]:
    members = fields.get(name, [])
    place = f"{where}{name}"
    if not isinstance(members, list):
        raise _wrong(place, "is not a list")
    return [(member, f"{place}[{i}]") for i, member in enumerate(members)]


def _compare(given: object, where: str) -> mvccstore.Compare:
    fields = _object(given, where, _KEYS | {"value", "value_b64", "operator", *_NUMBER_TARGETS})
    operator = next((known for known in _OPERATORS if known == fields.get("operator", "==")), None)
    if operator is None:
        raise _wrong(where, f"operator is {fields['operator']!r}, not one of {', '.join(_OPERATORS)}")
    keys = _keys(fields, where)
    targets = [name for name in ("value", "value_b64", *_NUMBER_TARGETS) if name in fields]
    if len(targets) != 1:
        raise _wrong(where, f"needs one of value, {', '.join(_NUMBER_TARGETS)}")
    if targets[0] in {"value", "value_b64"}:
        return mvccstore.Compare.value(keys, operator, _bytes(fields, "value", where) or b"")
    operand = _number(fields, targets[0], where)
    match targets[0]:
        case "version":
            return mvccstore.Compare.version(keys, operator, operand)
        case "create_revision":
            return mvccstore.Compare.create_revision(keys, operator, operand)
        case "mod_revision":
            return mvccstore.Compare.mod_revision(keys, operator, operand)
        case _:
            return mvccstore.Compare.lease(keys, operator, operand)


def _operation(given: object, where: str) -> Request:
    fields = _object(given, where, frozenset({"put", "delete", "range", "txn"}))
    if len(fields) != 1:
        raise _wrong(where, "needs one of put, delete, range, txn")
    name, content = next(iter(fields.items()))
    where = f"{where}.{name}"
    try:
        match name:
            case "put":
                return _put(content, where)
            case "delete":
                content = _object(content, where, _KEYS | {"prev_kv"})
                return mvccstore.Op.delete(_keys(content, where), prev_kv=_flag(content, "prev_kv", where))
            case "range":
                return _range(content, where)
            case _:
                return _txn(content, f"{where}.")
    except _FormError:
        raise
    except ValueError as error:
        raise _wrong(where, str(error)) from error


def _put(given: object, where: str) -> Request:
    fields = _object(given, where, _PUT)
    key = _bytes(fields, "key", where)
    if key is None:
        raise _wrong(where, "has no key")
    value = _bytes(fields, "value", where)
    ignore_value = _flag(fields, "ignore_value", where)
    if value is None and not ignore_value:
        raise _wrong(where, "has no value")
    return mvccstore.Op.put(
        key,
        value or b"",
        lease=_number(fields, "lease", where),
        prev_kv=_flag(fields, "prev_kv", where),
        ignore_value=ignore_value,
        ignore_lease=_flag(fields, "ignore_lease", where),
    )


def _range(given: object, where: str) -> Request:
    fields = _object(given, where, _RANGE)
    options: dict[str, Any] = {name: _number(fields, name, where) for name in _RANGE_NUMBERS & fields.keys()}
    options |= {name: _flag(fields, name, where) for name in _FLAGS & fields.keys()}
    if "order_by" in fields:
        options["order_by"] = str(fields["order_by"])  # which of them there are, `Op.range` knows
    return mvccstore.Op.range(_keys(fields, where), **options)


def _keys(fields: Mapping[str, Any], where: str) -> mvccstore.Keys:
    key, prefix, start, end = (_bytes(fields, name, where) for name in ("key", "prefix", "start", "end"))
    given = [name for name, value in (("key", key), ("prefix", prefix), ("start", start)) if value is not None]
    if len(given) != 1 or (end is not None and given != ["start"]):
        raise _wrong(where, "needs one of key, prefix, start (which may have an end)")
    try:
        if prefix is not None:
            return mvccstore.KeyRange.prefix(prefix)
        if start is not None:
            return mvccstore.KeyRange(start, end)
    except ValueError as error:
        raise _wrong(where, str(error)) from error
    if not key:
        raise _wrong(where, "key is empty")
    return key


def _object(given: object, where: str, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise _wrong(where, "is not an object")
    unknown = sorted(given.keys() - known)
    if unknown:
        raise _wrong(where, f"unknown field {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return given


def _bytes(fields: Mapping[str, Any], name: str, where: str) -> bytes | None:
    try:
        return from_json(name, fields)
    except ValueError as error:
        raise _wrong(where, str(error)) from error


def _number(fields: Mapping[str, Any], name: str, where: str) -> int:
    number = fields.get(name, 0)
    if type(number) is not int or not 0 <= number < 1 << 63:
        raise _wrong(where, f"{name} is {number!r}, not a number from 0 up")
    return number


def _flag(fields: Mapping[str, Any], name: str, where: str) -> bool:
    flag = fields.get(name, False)
    if not isinstance(flag, bool):
        raise _wrong(where, f"{name} is {flag!r}, neither true nor false")
    return flag


class _FormError(ValueError):
    """The JSON is not a transaction; the message says where."""


def _wrong(where: str, what: str) -> _FormError:
    return _FormError(f"{where.rstrip('.') or 'the document'}: {what}")
