"""Paths of the API server, by kind."""

import pytest

from finetune_operator.objects.kinds import Kind


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "path"),
    [
        (Kind.FINETUNEJOB, "team", "a", "/apis/finetune.dev/v1alpha1/namespaces/team/finetunejobs/a"),
        (Kind.JOB, "team", "", "/apis/batch/v1/namespaces/team/jobs"),
        (Kind.JOB, None, "", "/apis/batch/v1/jobs"),
        (Kind.POD, "team", "a b", "/api/v1/namespaces/team/pods/a%20b"),
        (Kind.LEASE, "system", "l", "/apis/coordination.k8s.io/v1/namespaces/system/leases/l"),
        (Kind.NODE, None, "n1", "/api/v1/nodes/n1"),
        (Kind.NAMESPACE, None, "team", "/api/v1/namespaces/team"),
    ],
)
def test_path(kind: Kind, namespace: str | None, name: str, path: str) -> None:
    assert kind.value.path(namespace, name) == path


def test_the_resources_of_a_group_are_listed_at_its_root() -> None:
    assert (Kind.FINETUNEJOB.value.root, Kind.POD.value.root) == ("/apis/finetune.dev/v1alpha1", "/api/v1")
