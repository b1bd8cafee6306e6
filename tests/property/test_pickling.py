"""Every error crosses to another process with its facts, and says them in a sentence."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mvccstore
from mvccstore import errors
from mvccstore.errors import StoreError

LONG_KEY = b"k" * 100_000
EXAMPLES: dict[type[StoreError], tuple[object, ...]] = {
    errors.StoreError: ("something is wrong",),
    errors.ClosedError: ("snapshot",),
    errors.RevisionError: ("something is wrong",),
    errors.CompactedError: (5, 7),
    errors.FutureRevisionError: (9, 7),
    errors.LimitError: (2_000, 1_000),
    errors.KeyTooLargeError: (2_000, 1_000),
    errors.ValueTooLargeError: (2_000, 1_000),
    errors.TxnTooLargeError: (129, 128),
    errors.AttributesTooLargeError: (70_000_000, 67_108_864),
    errors.UnacknowledgedLimitError: (10_001, 10_000),
    errors.SubscriptionLostError: ("mailer", 5, 7),
    errors.CompactionHeldError: (9, 5, "mailer"),
    errors.SubscriptionError: ("something is wrong",),
    errors.SubscriptionNotFoundError: ("mailer",),
    errors.SubscriptionExistsError: ("mailer",),
    errors.SubscriptionInUseError: ("mailer",),
    errors.TxnError: ("something is wrong",),
    errors.DuplicateKeyError: (b"k",),
    errors.KeyNotFoundError: (b"k",),
    errors.ConflictError: (7,),
    errors.AttributesConflictError: (5, 7),
    errors.LeaseError: (5,),
    errors.LeaseNotFoundError: (5,),
    errors.LeaseExistsError: (5,),
    errors.StorageError: ("jobs.mvcc", "no such folder"),
    errors.LockedError: ("jobs.mvcc", "process 77"),
    errors.StorageFullError: ("jobs.mvcc", "the disk is full"),
    errors.FormatError: ("jobs.mvcc", "not a store"),
    errors.CorruptError: ("jobs.mvcc", "a record is missing", ("I1: one", "I2: two")),
    errors.ReplicationError: ("something is wrong",),
    errors.NotLeaderError: ("member 3",),
}
ALL = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, StoreError)]


def test_every_error_is_listed_and_exported() -> None:
    assert set(EXAMPLES) == set(ALL)
    assert all(getattr(mvccstore, found.__name__) is found for found in ALL)
    assert {found.__name__ for found in ALL} <= set(mvccstore.__all__)


def facts(error: StoreError) -> dict[str, object]:
    return {**vars(error), "args": error.args, "retryable": error.retryable, "str": str(error)}


def assert_survives(error: StoreError) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert facts(again) == facts(error)
    assert facts(copy.copy(error)) == facts(copy.deepcopy(error)) == facts(error)


@pytest.mark.parametrize("found", ALL, ids=lambda found: found.__name__)
def test_error_survives_pickling_with_its_facts(found: type[StoreError]) -> None:
    assert_survives(found(*EXAMPLES[found]))


@pytest.mark.parametrize("found", [errors.ClosedError, errors.NotLeaderError])
def test_error_without_arguments_survives_pickling(found: type[StoreError]) -> None:
    assert_survives(found())


def test_corrupt_error_without_problems_names_its_reason_as_one() -> None:
    error = errors.CorruptError("jobs.mvcc", "a record is missing")
    assert error.problems == ("a record is missing",)
    assert_survives(error)


@given(numbers=st.tuples(st.integers(), st.integers()), key=st.binary(), text=st.text())
def test_errors_survive_pickling_whatever_their_facts(numbers: tuple[int, int], key: bytes, text: str) -> None:
    for found in (errors.CompactedError, errors.FutureRevisionError, errors.TxnTooLargeError):
        assert_survives(found(*numbers))
    assert_survives(errors.DuplicateKeyError(key))
    assert_survives(errors.LockedError(text, text))
    assert_survives(errors.CorruptError(text, text, (text,)))


@pytest.mark.parametrize("found", ALL, ids=lambda found: found.__name__)
def test_message_says_every_fact_and_fits_a_line(found: type[StoreError]) -> None:
    error = found(*EXAMPLES[found])
    message = str(error)
    assert len(message) > 10 or found is errors.LeaseError
    assert "\n" not in message
    assert not message.startswith("(")  # that is what a tuple of arguments looks like
    for fact in error.args:
        if isinstance(fact, int):
            assert f"{fact:,}" in message or str(fact) in message
        elif isinstance(fact, str | bytes):
            assert (fact if isinstance(fact, str) else fact.decode()) in message


@pytest.mark.parametrize("found", [errors.DuplicateKeyError, errors.KeyNotFoundError])
def test_message_about_a_long_key_is_short(found: type[errors.TxnError]) -> None:
    message = str(found(LONG_KEY))
    assert len(message) < 200
    assert "100,000 bytes" in message


def test_errors_to_try_again_after_say_so() -> None:
    retryable = {found for found in ALL if found.retryable}
    assert retryable == {
        errors.ConflictError,
        errors.AttributesConflictError,
        errors.LockedError,
        errors.NotLeaderError,
    }
