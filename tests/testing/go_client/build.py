"""The program beside this, of etcd's own Go client.

python -m tests.testing.go_client.build    # builds if need be, prints where
"""

from __future__ import annotations

from pathlib import Path

from tests.oracle.go_program import build_program


def build() -> Path:
    """Return the program, which is built first if nobody did; as `build_program`."""
    return build_program("go-client", Path(__file__).parent, ("go.mod", "go.sum", "main.go"))


if __name__ == "__main__":
    print(build())
