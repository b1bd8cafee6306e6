"""What is fuzzed. A target takes any bytes, and raises if what must hold does not."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import (
    target_etcd_file,
    target_hpack,
    target_http1,
    target_http2,
    target_json,
    target_messages,
    target_services,
)

CORPUS = Path(__file__).parent / "corpus"


class Target(NamedTuple):
    """One function to be fuzzed."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    """Inputs to begin with that make sense."""


TARGETS = {
    "http2": Target(target_http2.run, target_http2.SEEDS),
    "hpack": Target(target_hpack.run, target_hpack.SEEDS),
    "http1": Target(target_http1.run, target_http1.SEEDS),
    "json": Target(target_json.run, target_json.SEEDS),
    "messages": Target(target_messages.run, target_messages.SEEDS),
    "services": Target(target_services.run, target_services.SEEDS),
    "etcd_file": Target(target_etcd_file.run, target_etcd_file.SEEDS),
}


def kept(name: str) -> Iterator[tuple[str, bytes]]:
    """Iterate over the inputs that are kept for a target: what each was kept for, and its bytes."""
    path = CORPUS / f"{name}.txt"
    if path.exists():
        for line in path.read_text().splitlines():
            why, encoded = line.split()
            yield why, b64decode(encoded)


def keep(name: str, inputs: Sequence[tuple[str, bytes]]) -> None:
    """Keep these inputs for a target, and no others."""
    CORPUS.mkdir(exist_ok=True)
    lines = [f"{why} {b64encode(data).decode()}\n" for why, data in inputs]
    (CORPUS / f"{name}.txt").write_text("".join(lines))
