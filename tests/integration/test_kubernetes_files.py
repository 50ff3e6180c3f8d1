"""The Kubernetes manifests as files: they can be checked on any machine, without a tool."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from tests import manifests
from tests.manifests import Document

FILES = list(manifests.files())
PODS = [document for document in FILES if document["kind"] in (*manifests.WORKLOADS, "Pod")]
SCHEMAS = manifests.schemas()


def name_of(document: Document) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


each_document = pytest.mark.parametrize("document", FILES, ids=name_of)
each_pod = pytest.mark.parametrize("document", PODS, ids=name_of)


def spec_of(document: Document) -> dict[str, Any]:
    """The pod's spec."""
    found: dict[str, Any] = document["spec"] if document["kind"] == "Pod" else document["spec"]["template"]["spec"]
    return found


def containers(spec: Document) -> list[Document]:
    return [*spec.get("initContainers", []), *spec["containers"]]


@each_document
def test_a_document_has_only_fields_that_kubernetes_knows(document: Document) -> None:
    jsonschema_rs.Draft202012Validator(SCHEMAS[manifests.schema_name(document)]).validate(document)


def test_a_field_that_kubernetes_does_not_know_is_noticed() -> None:
    document = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "router"}, "spec": {"selectors": {}}}
    with pytest.raises(jsonschema_rs.ValidationError, match="selectors"):
        jsonschema_rs.Draft202012Validator(SCHEMAS["service-v1"]).validate(document)


@each_pod
def test_a_pod_can_do_no_more_than_it_needs(document: Document) -> None:
    spec = spec_of(document)
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in containers(spec):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        # Kafka's image writes its settings beside its programs.
        assert rights["readOnlyRootFilesystem"] is (container["name"] != "kafka")
        assert "privileged" not in rights
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@each_pod
def test_no_pod_gets_variables_of_services(document: Document) -> None:
    assert spec_of(document)["enableServiceLinks"] is False


@each_pod
def test_a_secret_is_readable_for_the_pods_user_only(document: Document) -> None:
    spec = spec_of(document)
    modes = [volume["secret"]["defaultMode"] for volume in spec.get("volumes", []) if "secret" in volume]
    assert set(modes) <= {0o440}
    assert not modes or spec["securityContext"]["fsGroup"]


@each_pod
def test_a_fenced_store_is_not_killed(document: Document) -> None:
    """Health of gRPC is NOT_SERVING while a store is fenced, until `baton recover` opens it again."""
    (container,) = spec_of(document)["containers"]
    for name in ("startupProbe", "livenessProbe"):
        if name in container:
            assert container[name]["httpGet"]["path"] == "/healthz"
    assert ("readinessProbe" in container) is (document["kind"] != "Pod")


def test_the_old_file_is_copied_into_the_volume_that_the_old_service_gets() -> None:
    named = {name_of(document): document for document in FILES}
    old = named["StatefulSet-simple-mcp"]
    claim, pod = named[f"PersistentVolumeClaim-{manifests.VOLUME}"], named["Pod-copy"]
    (template,) = old["spec"]["volumeClaimTemplates"]
    assert f"{template['metadata']['name']}-{old['metadata']['name']}-0" == manifests.VOLUME
    assert claim["spec"] == template["spec"]
    (volume,) = pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": manifests.VOLUME}
    # The same user, at the same place.
    assert pod["spec"]["securityContext"].items() <= spec_of(old)["securityContext"].items()
    mounts = spec_of(old)["containers"][0]["volumeMounts"]
    assert set(map(str, pod["spec"]["containers"][0]["volumeMounts"])) <= set(map(str, mounts))
