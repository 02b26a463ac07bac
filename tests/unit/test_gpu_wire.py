"""The wire formats of the kubelet: what protoc made of each `.proto` is what the file says now."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor

API = Path(__file__).parents[2] / "sandbox" / "gpu" / "emulator" / "api"
FILES = sorted(API.glob("*.proto"))
MESSAGE = re.compile(r"^message (\w+) \{(.*?)\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"(\w+)\s*=\s*(\d+)\s*;")
CALL = re.compile(r"rpc (\w+)")


def fields(message: Descriptor) -> dict[str, int]:
    return {field.name: field.number for field in message.fields}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_generated_messages_are_those_of_the_file(path: Path) -> None:
    made: FileDescriptor = importlib.import_module(f"sandbox.gpu.emulator.api.{path.stem}_pb2").DESCRIPTOR
    text = re.sub(r"//.*", "", path.read_text())
    written = {
        name: {field: int(number) for field, number in FIELD.findall(body)} for name, body in MESSAGE.findall(text)
    }
    assert {name: fields(message) for name, message in made.message_types_by_name.items()} == written
    calls = [method.name for service in made.services_by_name.values() for method in service.methods]
    assert calls == CALL.findall(text)
