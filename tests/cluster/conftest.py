"""What the whole tier shares: `api`, an API server alone with our CRD in it; and `cluster`, with nodes and S3."""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.crd import crd
from tests.cluster.control_plane import Api, control_plane
from tests.cluster.installation import Inputs, Installation, add_credentials, make_inputs
from tests.cluster.local import lifecycle
from tests.cluster.local.cluster import Cluster, Settings
from tests.cluster.local.state import State, clusters
from tests.support.debian import ProgramsMissingError
from tests.tools import GoMissingError

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


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Kubernetes of two nodes and S3. Where there can be none, tests skip; but never with CI=true.

    FINETUNE_TEST_CLUSTER names one that is up already (its state folder), to be used and left up.
    """
    if given := os.environ.get("FINETUNE_TEST_CLUSTER"):
        found = lifecycle.running(State(Path(given)))
        assert found, f"no cluster is up in {given}"
        yield found
        return
    state = State(clusters() / f"{lifecycle.TEST_PREFIX}{os.getpid()}")
    with lifecycle.owned(state):
        lifecycle.remove_abandoned()
        try:
            cluster = lifecycle.up(state, Settings(), print)
        except (lifecycle.ClusterUnavailableError, ProgramsMissingError, GoMissingError) as missing:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(missing))
        try:
            yield cluster
        finally:
            if request.session.testsfailed:
                logs = tmp_path_factory.mktemp("cluster") / "logs"
                shutil.copytree(cluster.logs, logs)
                print(f"logs of the cluster: {logs}")
            lifecycle.down(state)


@pytest.fixture(scope="session")
def installation(cluster: Cluster) -> Installation:
    """The operator, installed by Helm."""
    installed = Installation(cluster)
    installed.install()
    return installed


@pytest.fixture(scope="session")
def inputs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Models and data in the cluster's S3."""
    return make_inputs(cluster, tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def team(installation: Installation, cluster: Cluster, namespace: str) -> str:
    """A namespace in which the operator works and a job finds its keys."""
    add_credentials(cluster, namespace)
    return namespace


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, where only pods of the restricted kind may run; gone after the test."""
    test = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    name = f"{test[:40].strip('-')}-{secrets.token_hex(2)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    cluster.kubectl("create", "--filename=-", input=json.dumps(made))
    # no pod is admitted before its service account is there
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=30s")
    try:
        yield name
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
        # after that their owners cannot replace them; the rest of the namespace takes 5 s more, and disturbs nobody
        cluster.kubectl("delete", "pods", "--all", f"--namespace={name}", "--grace-period=1", "--timeout=90s")
