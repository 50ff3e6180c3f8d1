"""Writes a contract's OpenAPI document, or checks that it is fresh.

    python protos/openapi.py IMAGE PLACE OUTPUT [--check]

IMAGE is a descriptor image with comments (`protos/generate.py --image`), PLACE the compiled contract
(`package.module_pb2:ServiceName`). OUTPUT lies beside the compiled module and ships with it.
"""

import argparse
import json
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from libs.contract.descriptors import Contract
from libs.http.comments import Comments
from libs.http.openapi import document


def main() -> int:
    """Do what the command line says; 0 if done, or fresh."""
    parser = argparse.ArgumentParser(description="Write a contract's OpenAPI document.")
    parser.add_argument("image", type=Path, help="descriptor image with comments")
    parser.add_argument("place", help="package.module_pb2:ServiceName")
    parser.add_argument("output", type=Path, help="the document's file")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the output is not fresh")
    arguments = parser.parse_args()
    text = write(arguments.image, arguments.place)
    fresh = arguments.output.exists() and arguments.output.read_text() == text
    if arguments.check and not fresh:
        print(f"{arguments.output} is not what the protos say; run: make openapi", file=sys.stderr)
        return 1
    if not fresh:
        arguments.output.write_text(text)
    return 0


def write(image: Path, place: str) -> str:
    comments = Comments.of(FileDescriptorSet.FromString(image.read_bytes()))
    return json.dumps(document(Contract.load(place), comments), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
