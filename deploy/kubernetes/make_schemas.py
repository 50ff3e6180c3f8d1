"""Writes schemas/kubernetes.json: the strict schemas of the kinds that the manifests use, and of all that these name.

make kubernetes-schemas    # with the package kubernetes-validate, which carries the schemas of every version

The file is kept, so that the manifests can be checked without a network. It has no descriptions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "schemas" / "kubernetes.json"

VERSION = "1.30"
"""The oldest version of Kubernetes that the manifests need: `preStop.sleep`. Later ones keep these kinds."""
KINDS = (
    "api.apps.v1.Deployment",
    "api.apps.v1.StatefulSet",
    "api.core.v1.ConfigMap",
    "api.core.v1.Namespace",
    "api.core.v1.PersistentVolumeClaim",
    "api.core.v1.Pod",
    "api.core.v1.Secret",
    "api.core.v1.Service",
    "api.core.v1.ServiceAccount",
    "api.networking.v1.NetworkPolicy",
    "api.policy.v1.PodDisruptionBudget",
)

_COMMENT = (
    f"Made by `make kubernetes-schemas`, not by hand: from the OpenAPI document of Kubernetes {VERSION}, Copyright The"
    " Kubernetes Authors, Apache-2.0, as the package kubernetes-validate carries it."
)


def text(definitions: dict[str, Any]) -> str:
    kept: dict[str, Any] = {}
    left = [f"io.k8s.{kind}" for kind in KINDS]
    while left:
        name = left.pop()
        if name in kept:
            continue
        found = _short(definitions[name])
        if name.removeprefix("io.k8s.") in KINDS:
            # Clusters write it.
            found.get("properties", {}).pop("status", None)
        kept[name] = found
        left += _named(found)
    lines = (f"{json.dumps(name)}: {json.dumps(kept[name], separators=(',', ':'))}" for name in sorted(kept))
    return f'{{"$comment": {json.dumps(_COMMENT)},\n"$defs": {{\n' + ",\n".join(lines) + "\n}}\n"


def _short(schema: Any, *, names: bool = False) -> Any:
    """The schema without descriptions. `names`: its keys are names of fields."""
    if isinstance(schema, list):
        return [_short(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = (name for name in schema if names or (name != "description" and not name.startswith("x-kubernetes")))
    return {name: _short(schema[name], names=not names and name == "properties") for name in kept}


def _named(schema: Any) -> Iterator[str]:
    """The definitions that the schema refers to."""
    if isinstance(schema, list):
        for one in schema:
            yield from _named(one)
    elif isinstance(schema, dict):
        for name, value in schema.items():
            if name == "$ref":
                yield value.rpartition("/")[2]
            else:
                yield from _named(value)


if __name__ == "__main__":
    package = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}.0-local-strict"
    FILE.write_text(text(json.loads((package / "_definitions.json").read_text())["$defs"]))
    print(f"wrote {FILE}")
