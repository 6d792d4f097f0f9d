"""One API server for the whole tier, with our CRD established in it."""

import time
from collections.abc import Iterator

import pytest

from finetune_api.crd import crd
from tests.cluster.control_plane import Api, control_plane

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A kube-apiserver that serves FineTuneJobs."""
    with control_plane(tmp_path_factory.mktemp("control-plane")) as api:
        definition = crd()
        made = api.call("POST", CRDS, definition)
        assert made.status == 201, made.message
        name = definition["metadata"]["name"]
        deadline = time.monotonic() + 60
        while not _served(api, name):
            assert time.monotonic() < deadline, api.call("GET", f"{CRDS}/{name}").body["status"]
        yield api


def _served(api: Api, name: str) -> bool:
    """Whether the CRD is Established and its path answers, which is a moment later."""
    conditions = api.call("GET", f"{CRDS}/{name}").body.get("status", {}).get("conditions") or []
    established = any(one["type"] == "Established" and one["status"] == "True" for one in conditions)
    return established and api.call("GET", "/apis/finetune.dev/v1alpha1/finetunejobs").status == 200
