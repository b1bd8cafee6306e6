"""Writes the Python modules of the wire's messages from `mvccstore/server/messages/proto/` (`make messages`).

Not protoc's own Python output, for three reasons. That registers in protobuf's default pool, where another
etcd client's modules in the same process define the same full names and the second import fails. It refuses to
run on a protobuf older than the compiler. And it changes with every version of the compiler, so that a test for
drift would fail when a tool is upgraded. What is taken from protoc is the set of descriptors; the classes are
built from it at import, in a pool of our own, and the stubs beside them tell type checkers the fields.
"""

from __future__ import annotations

import argparse
import base64
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc  # type: ignore[import-untyped]  # has no stubs

MESSAGES = Path(__file__).parents[1] / "mvccstore" / "server" / "messages"
_PREFIX = "mvccstore_"
_PACKAGE = "mvccstore.server.messages"
_LINE = 100
_NOTE = "Made by `make messages` from proto/{}; change that instead."
_DESCRIPTORS = '''"""The descriptors of every message, enum and service, as protoc made them.

{note}
"""

from __future__ import annotations

from base64 import b64decode

FILES = b64decode(
{lines}
)
"""A serialized `google.protobuf.FileDescriptorSet`, each file after those that it imports."""
'''
_IMPORTS = (
    ("collections.abc", {"Iterable"}),
    ("typing", {"ClassVar", "Final"}),
    ("google.protobuf.internal.containers", {"RepeatedCompositeFieldContainer", "RepeatedScalarFieldContainer"}),
    ("google.protobuf.internal.enum_type_wrapper", {"EnumTypeWrapper"}),
    ("google.protobuf.message", {"Message"}),
)
"""What a stub may need, the standard library first."""
_PYTHON = {
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_STRING: "str",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_INT64: "int",
    FieldDescriptorProto.TYPE_UINT64: "int",
    FieldDescriptorProto.TYPE_UINT32: "int",
    FieldDescriptorProto.TYPE_ENUM: "int",  # open in proto3: an unknown number is kept, so no narrower type holds
}


def generate(folder: Path) -> list[Path]:
    """Write all generated files into `folder` and return them; about 0.2 s."""
    files = _compile()
    home = {f".{file.package}.{message.name}": _module(file) for file in files.file for message in file.message_type}
    written = {"descriptors.py": _descriptors(files)}
    for file in files.file:
        written[f"{_module(file)}.py"] = _classes(file)
        written[f"{_module(file)}.pyi"] = _stub(file, home)
    for name, text in written.items():
        (folder / name).write_text(text)
    return [folder / name for name in written]


def _compile() -> FileDescriptorSet:
    sources = sorted(path.name for path in (MESSAGES / "proto").glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "descriptors"
        arguments = [f"-I{MESSAGES / 'proto'}", f"--descriptor_set_out={out}", "--include_imports", *sources]
        if protoc.main(["protoc", *arguments]):
            raise SystemExit(1)
        return FileDescriptorSet.FromString(out.read_bytes())


def _module(file: FileDescriptorProto) -> str:
    return file.name.removeprefix(_PREFIX).removesuffix(".proto")


def _descriptors(files: FileDescriptorSet) -> str:
    text = base64.b64encode(files.SerializeToString(deterministic=True)).decode()
    lines = "\n".join(f'    b"{text[at : at + _LINE]}"' for at in range(0, len(text), _LINE))
    return _DESCRIPTORS.format(note=_NOTE.format("*.proto"), lines=lines)


def _classes(file: FileDescriptorProto) -> str:
    makers = [name for name, used in (("enum", file.enum_type), ("message", file.message_type)) if used]
    lines = [
        f'"""The messages of package `{file.package}`.\n\n{_NOTE.format(file.name)}\n"""\n',
        "from __future__ import annotations\n",
        f"from {_PACKAGE}.pool import {', '.join(makers)}\n",
    ]
    for enum in file.enum_type:
        lines.append(f'{enum.name} = enum("{file.package}.{enum.name}")')
        lines += [f"{value.name} = {value.number}" for value in enum.value]
    lines += [f'{message.name} = message("{file.package}.{message.name}")' for message in file.message_type]
    return "\n".join(lines) + "\n"


def _stub(file: FileDescriptorProto, home: dict[str, str]) -> str:
    blocks = [_enum(enum, "Final") for enum in file.enum_type] + [_message(message) for message in file.message_type]
    body = "\n".join("\n".join(block) + "\n" for block in blocks)
    words = set(re.findall(r"\w+", body))
    groups = [
        [(module, sorted(words.intersection(names))) for module, names in _IMPORTS[:2]],
        [(module, sorted(words.intersection(names))) for module, names in _IMPORTS[2:]],
        [(module, sorted(names)) for module, names in sorted(_foreign(file, home).items())],
    ]
    lines = [
        "\n".join(f"from {module} import {', '.join(names)}" for module, names in group if names) for group in groups
    ]
    head = "\n\n".join(block for block in lines if block)
    return f"# The types of package `{file.package}`.\n# {_NOTE.format(file.name)}\n\n{head}\n\n{body}"


def _foreign(file: FileDescriptorProto, home: dict[str, str]) -> dict[str, set[str]]:
    """The types that `file` takes from other modules, by module."""
    found: dict[str, set[str]] = {}
    for message in file.message_type:
        for field in message.field:
            module = home.get(field.type_name)
            if field.type == field.TYPE_MESSAGE and module is not None and module != _module(file):
                found.setdefault(f"{_PACKAGE}.{module}", set()).add(_short(field))
    return found


def _message(message: DescriptorProto) -> Iterator[str]:
    if not message.field:
        yield f"class {message.name}(Message):\n    def __init__(self) -> None: ..."
        return
    yield f"class {message.name}(Message):"
    for enum in message.enum_type:
        yield from (f"    {line}" for line in _enum(enum, "ClassVar"))
    for field in message.field:
        if field.label != field.LABEL_REPEATED and field.type != field.TYPE_MESSAGE:
            yield f"    {field.name}: {_PYTHON[field.type]}"
    yield "    def __init__("
    yield "        self,"
    yield "        *,"
    yield from (f"        {field.name}: {_argument(field)} = ...," for field in message.field)
    yield "    ) -> None: ..."
    for field in message.field:
        if field.label == field.LABEL_REPEATED or field.type == field.TYPE_MESSAGE:
            yield f"    @property\n    def {field.name}(self) -> {_held(field)}: ..."


def _enum(enum: EnumDescriptorProto, wrapper: str) -> Iterator[str]:
    yield f"{enum.name}: {wrapper}[EnumTypeWrapper]"
    for value in enum.value:
        yield f"{value.name}: {wrapper}[int]"


def _argument(field: FieldDescriptorProto) -> str:
    kind = _short(field)
    if field.label == field.LABEL_REPEATED:
        return f"Iterable[{kind}]"
    return f"{kind} | None" if field.type == field.TYPE_MESSAGE else kind


def _held(field: FieldDescriptorProto) -> str:
    kind = _short(field)
    if field.label != field.LABEL_REPEATED:
        return kind
    container = "Composite" if field.type == field.TYPE_MESSAGE else "Scalar"
    return f"Repeated{container}FieldContainer[{kind}]"


def _short(field: FieldDescriptorProto) -> str:
    return field.type_name.rpartition(".")[2] if field.type == field.TYPE_MESSAGE else _PYTHON[field.type]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MESSAGES, help="the folder to write into")
    generate(parser.parse_args().out)
