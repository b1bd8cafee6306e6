"""The work that is measured, as data: sizes, keys, values, and the order in which they are asked for.

Everything follows from a seed, and every stream from the seed and its own name, so adding one stream
leaves the others as they were. Loaded keys have even numbers; odd ones are free for puts of new keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

VALUES_KEPT = 1_024
"""Different values; a million of their own would cost 256 MB of this process and measure nothing else."""

Item = tuple[bytes, bytes]
Bounds = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything. The defaults are the full run."""

    keys: int = 100_000
    value_bytes: int = 256
    range_keys: int = 1_000
    batch_keys: int = 100
    rounds: int = 11
    """Timed rounds of each contender, after one that warms up. Many and short: on a machine that does other
    things, too, some of them are then left alone."""
    gets: int = 3_000
    """Operations of one round; likewise the next three."""
    puts: int = 500
    batches: int = 8
    ranges: int = 5
    latencies: int = 1_000
    """Operations timed one by one, for the percentiles."""
    fsync_keys: int = 10_000
    fsync_rounds: int = 3
    fsync_threads: int = 64
    fsync_puts: int = 400
    """Of the one thread."""
    fsync_puts_each: int = 30
    """Of each of the many."""
    million: int = 1_000_000
    """Keys of the store that is opened, and versions of the hot key."""
    opens: int = 9
    compact_versions: int = 6
    """Of each of `keys` keys; all but the last two go in the pass that is timed alone."""
    idle_watchers: int = 10_000
    idle_rounds: int = 31
    fan_watchers: int = 1_000
    fan_blocks: int = 2
    fan_puts: int = 20
    """Of one round, each of them a commit."""
    watch_latencies: int = 5_000
    wire_rounds: int = 7
    wire_calls_1: int = 12_000
    """Puts of one round with one client; gets are twice as many."""
    wire_calls: int = 12_000
    """Of one round with 64 clients, and with more."""
    wire_clients: int = 1_000
    """On a tenth as many connections; and connections, with ten watches each, where memory is measured."""
    wire_ranges: int = 40
    wire_fan_connections: int = 10
    """Of ten watchers each."""
    wire_fan_puts: int = 500
    testing_starts: int = 200
    testing_servers: int = 1_000
    testing_real_starts: int = 7

    def scaled(self, keys: int) -> Sizes:
        """Return these sizes with another number of keys."""
        return replace(self, keys=keys, range_keys=min(self.range_keys, keys // 2))


FULL = Sizes()
QUICK = Sizes(
    keys=2_000,
    range_keys=100,
    batch_keys=20,
    rounds=2,
    gets=200,
    puts=50,
    batches=4,
    ranges=4,
    latencies=20,
    fsync_keys=100,
    fsync_rounds=1,
    fsync_threads=8,
    fsync_puts=10,
    fsync_puts_each=5,
    million=3_000,
    opens=2,
    compact_versions=4,
    idle_watchers=50,
    idle_rounds=2,
    fan_watchers=20,
    fan_blocks=2,
    fan_puts=5,
    watch_latencies=20,
    wire_rounds=2,
    wire_calls_1=20,
    wire_calls=200,
    wire_clients=50,
    wire_ranges=8,
    wire_fan_connections=2,
    wire_fan_puts=20,
    testing_starts=5,
    testing_servers=20,
    testing_real_starts=1,
)


@dataclass(frozen=True)
class Workload:
    """Streams of seeded work."""

    sizes: Sizes
    seed: int

    def random(self, stream: str) -> Random:
        """Return the source of randomness of one stream."""
        return Random(f"{self.seed}/{stream}")

    @cached_property
    def values(self) -> list[bytes]:
        """The values that everything is given in turn."""
        random = self.random("values")
        return [random.randbytes(self.sizes.value_bytes) for _ in range(VALUES_KEPT)]

    def shuffled(self, stream: str, keys: int) -> list[Item]:
        """Return every loaded key once, in random order, with a value each."""
        names = [key(number) for number in range(keys)]
        self.random(stream).shuffle(names)
        return self._with_values(names)

    def picks(self, stream: str, count: int) -> list[bytes]:
        """Return loaded keys, drawn at random."""
        random, keys = self.random(stream), self.sizes.keys
        return [key(random.randrange(keys)) for _ in range(count)]

    def overwrites(self, stream: str, count: int) -> list[Item]:
        """Return loaded keys, drawn at random, with a value each."""
        return self._with_values(self.picks(stream, count))

    def new(self, rounds: int, count: int) -> list[list[Item]]:
        """Return keys that are not loaded, all of them different, in random order."""
        numbers = self.random("new").sample(range(self.sizes.keys), min(rounds * count, self.sizes.keys))
        items = self._with_values([new_key(number) for number in numbers])
        each = len(items) // rounds
        return [items[i * each : (i + 1) * each] for i in range(rounds)]

    def batches(self, stream: str, count: int) -> list[list[Item]]:
        """Return batches of loaded keys; no key twice in one of them."""
        random, sizes = self.random(stream), self.sizes
        return [
            self._with_values([key(number) for number in random.sample(range(sizes.keys), sizes.batch_keys)])
            for _ in range(count)
        ]

    def ranges(self, stream: str, count: int) -> list[Bounds]:
        """Return bounds of ranges that hold `range_keys` keys each."""
        random, width = self.random(stream), self.sizes.range_keys
        starts = [random.randrange(self.sizes.keys - width) for _ in range(count)]
        return [(key(start), key(start + width)) for start in starts]

    def _with_values(self, names: list[bytes]) -> list[Item]:
        values = self.values
        return [(name, values[i % VALUES_KEPT]) for i, name in enumerate(names)]


def key(number: int) -> bytes:
    """Return the name of a loaded key; names sort as numbers."""
    return b"key/%09d" % (2 * number)


def new_key(number: int) -> bytes:
    """Return the name of a key that is not loaded, just after that of the same number."""
    return b"key/%09d" % (2 * number + 1)


def chunks(items: list[Item], size: int) -> Iterator[list[Item]]:
    """Cut a list into pieces."""
    return (items[i : i + size] for i in range(0, len(items), size))
