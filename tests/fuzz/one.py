"""One target under atheris: `python -m tests.fuzz.one TARGET [what libFuzzer takes]`. `run` starts it."""

from __future__ import annotations

import sys


def main() -> None:
    """Fuzz until libFuzzer has enough."""
    import atheris  # which is no dependency

    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["mvccstore", "hpack", "h11", "wsproto"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)
    # A merge runs itself by a shell, again when an input ends it.
    atheris.Setup([f"{sys.executable} -m tests.fuzz.one {name}", *arguments], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
