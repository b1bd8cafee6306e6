"""h2spec, a conformance test of others for HTTP/2, from its Go module.

python -m tests.wire.h2spec.build    # builds if need be, prints where
"""

from __future__ import annotations

from pathlib import Path

from tests.oracle.go_program import build_program


def build() -> Path:
    """Return the program, which is built first if nobody did; as `build_program`."""
    return build_program(
        "h2spec", Path(__file__).parent, ("go.mod", "go.sum", "tools.go"), "github.com/summerwind/h2spec/cmd/h2spec"
    )


if __name__ == "__main__":
    print(build())
