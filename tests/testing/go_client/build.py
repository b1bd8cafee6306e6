"""The program beside this, of etcd's own Go client, built once and kept as the oracle is.

python -m tests.testing.go_client.build    # builds if need be, prints where
"""

from __future__ import annotations

from pathlib import Path

from tests.oracle.program import Program

build = Program("go-client", Path(__file__).parent).build

if __name__ == "__main__":
    print(build())
