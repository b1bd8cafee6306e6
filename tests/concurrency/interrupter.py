"""Interrupting a thread at each place in turn where CPython looks for signals."""

from __future__ import annotations

import dis
from types import CodeType, FrameType
from typing import Any


class Interrupted(BaseException):
    """Stands for KeyboardInterrupt."""


class Interrupter:
    """A trace function; raises `Interrupted` once, at the n-th such place in the code of some folder or file.

    Those places are after a call, at the beginning of a function, and after a jump back.
    """

    _places: dict[CodeType, frozenset[int]] = {}  # noqa: RUF012 - a cache that all share

    def __init__(self, place: int, code_of: str) -> None:
        self.place = place
        self.where: str | None = None
        self._code_of = code_of

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        del event, arg
        code = frame.f_code
        # What is raised in a `__del__`, Python drops.
        if self.where is not None or not code.co_filename.startswith(self._code_of) or code.co_name == "__del__":
            return None
        frame.f_trace_opcodes = True
        return self._trace

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        del arg
        if event == "opcode" and self.where is None and frame.f_lasti in self._signal_places(frame.f_code):
            self.place -= 1
            if self.place < 0:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}"
                raise Interrupted
        return self._trace

    def _signal_places(self, code: CodeType) -> frozenset[int]:
        if code not in self._places:
            bytecode = dis.Bytecode(code)
            regions: list[Any] = list(bytecode.exception_entries)  # type: ignore[attr-defined]

            def handler(offset: int) -> int | None:
                return next((region.target for region in regions if region.start <= offset < region.end), None)

            places = set()
            before = None
            for instruction in bytecode:
                # CPython raises at the end of a call, so what is tried there counts, while we raise at the
                # beginning of what follows: at the end of a `try` these may differ.
                if (
                    before is not None
                    and before.opname.startswith(("CALL", "RESUME", "JUMP_BACKWARD"))
                    and handler(before.offset) == handler(instruction.offset)
                ):
                    places.add(instruction.offset)
                before = instruction
            self._places[code] = frozenset(places)
        return self._places[code]
