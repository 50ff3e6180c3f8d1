"""Builds messages from a serialized descriptor, with public functions that every protobuf since 4.25 has."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto


def load(serialized: bytes, module: dict[str, Any]) -> FileDescriptor:
    """Put the classes of the file's messages into `module`. The file's imports must be loaded before.

    If the process already has another copy of the contract (stubs of its own, or of another release), its messages are
    used: a process has one message per name. Raises ImportError if that copy has another file name.
    """
    pool = descriptor_pool.Default()
    name = FileDescriptorProto.FromString(serialized).name
    try:
        pool.AddSerializedFile(serialized)
        file = pool.FindFileByName(name)
    except (TypeError, KeyError) as error:
        file = _loaded(pool, name, error)
    for message, descriptor in file.message_types_by_name.items():
        kind = message_factory.GetMessageClass(descriptor)
        if kind.__module__ is None:
            kind.__module__ = module["__name__"]
        module[message] = kind
    return file


def _loaded(pool: descriptor_pool.DescriptorPool, name: str, error: Exception) -> FileDescriptor:
    try:
        return pool.FindFileByName(name)
    except KeyError:
        raise ImportError(
            f"{name}: this process has loaded its messages from a file of another name: generate your own stubs from "
            f"{name} with the folder `protos` as root, or use those of baton_client.messages ({error})"
        ) from error
