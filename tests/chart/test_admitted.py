"""A real API server on what the chart makes: types and names, pod security, rights, and what Helm leaves behind.

Server-side dry-run with strict field validation instead of kubeconform: the same schemas and the admission beyond them.
"""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charts.generate import CHART, NAMESPACE, RELEASE
from tests.chart import values as cases
from tests.chart.conftest import Helm, Object, Server, one, written

APPLY = "?fieldManager=test&fieldValidation=Strict&force=true"


def path(each: Object) -> str:
    group = each["apiVersion"]
    named = each["metadata"]
    scope = f"/namespaces/{named['namespace']}" if "namespace" in named else ""
    kind = each["kind"].lower()
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
    return f"/{'apis' if '/' in group else 'api'}/{group}{scope}/{plural}/{named['name']}"


def apply(server: Server, each: Object, dry: str = "") -> Object:
    answer = server.api.call("PATCH", path(each) + APPLY + dry, each, Content_Type="application/apply-patch+yaml")
    assert answer.status in {200, 201}, f"{each['kind']} {each['metadata']['name']}: {answer.message}"
    return answer.body


@pytest.mark.parametrize("case", cases.ALL)
def test_every_object_is_taken_as_it_is(server: Server, helm: Helm, tmp_path: Path, case: str) -> None:
    for each in helm.template(tmp_path, cases.ALL[case]):
        if each["kind"] != "ServiceMonitor":  # of the Prometheus operator, which is not here
            assert list(lost(each, apply(server, each, "&dryRun=All"), each["kind"])) == []


def lost(sent: Any, taken: Any, at: str) -> Iterator[str]:
    """What the server dropped or changed; it adds defaults, and leaves out what is empty."""
    if isinstance(sent, dict) and isinstance(taken, dict):
        for key, value in sent.items():
            yield from lost(value, taken.get(key, type(value)()), f"{at}.{key}")
    elif isinstance(sent, list) and isinstance(taken, list) and len(sent) == len(taken):
        for index, (one, other) in enumerate(zip(sent, taken, strict=True)):
            yield from lost(one, other, f"{at}[{index}]")
    elif sent != taken and str(sent) != str(taken):  # quantities come back as text
        yield f"{at}: sent {sent!r}, taken {taken!r}"


@pytest.mark.parametrize("case", ["default", "nothing"])
def test_its_pods_meet_the_restricted_standard(server: Server, helm: Helm, tmp_path: Path, case: str) -> None:
    pods = "/api/v1/namespaces/restricted/pods?dryRun=All"
    pod = one(helm.template(tmp_path, cases.ALL[case]), "Deployment")["spec"]["template"]
    account = {"metadata": {"name": pod["spec"]["serviceAccountName"]}}
    server.api.call("POST", "/api/v1/namespaces/restricted/serviceaccounts", account)
    pod["metadata"]["name"] = "operator"
    made = server.api.call("POST", pods, pod)
    assert made.status == 201, made.message
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    assert "violates PodSecurity" in server.api.call("POST", pods, pod).message  # the standard is enforced here


ON_JOBS = {
    "finetunejobs.finetune.dev": "get list watch delete",
    "finetunejobs.finetune.dev/status": "patch",
    "jobs.batch": "get list watch create delete",
    "pods": "get list watch delete",
    "pods/log": "get",
    "pods/status": "patch",
    "secrets": "create",
    "events": "create list",
    "namespaces": "get",
}
ON_JOBS_ALONE = {name: verbs for name, verbs in ON_JOBS.items() if name != "pods/status"} | {"pods": "get list watch"}
LEASE = {
    "leases.coordination.k8s.io": "create",
    "leases.coordination.k8s.io finetune-operator": "get update",
}
NODES = {"nodes": "get list"}
OF_EVERYBODY = {"authorization.k8s.io", "authentication.k8s.io"}  # who am I, what may I do


def rights(server: Server, namespace: str) -> dict[str, str]:
    """All that the operator's account may do in a namespace, as the authorizer lists it, by resource (and name)."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    answer = server.api.call(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        review,
        Impersonate_User=f"system:serviceaccount:{NAMESPACE}:{RELEASE}",
        Impersonate_Group="system:authenticated",
    )
    assert answer.status == 201, answer.message
    assert not answer.body["status"]["incomplete"]
    found = {}
    for rule in answer.body["status"]["resourceRules"]:
        for group, resource in itertools.product(rule["apiGroups"], rule["resources"]):
            plural, slash, below = resource.partition("/")
            whole = ".".join(filter(None, (plural, group))) + slash + below
            if group not in OF_EVERYBODY:
                found[" ".join((whole, *rule.get("resourceNames", ())))] = " ".join(rule["verbs"])
    return found


def may(server: Server, verb: str, resource: str) -> bool:
    """What the authorizer answers to one question."""
    asked = {"namespace": "team-a", "verb": verb, "resource": resource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:{NAMESPACE}:{RELEASE}", "resourceAttributes": asked},
    }
    answer = server.api.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer.body["status"]["allowed"])


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            cases.DEFAULT,
            {"elsewhere": ON_JOBS | NODES, "team-a": ON_JOBS | NODES, NAMESPACE: ON_JOBS | NODES | LEASE},
        ),
        (
            cases.NAMESPACED,
            {"elsewhere": NODES, "team-a": ON_JOBS | NODES, "team-b": ON_JOBS | NODES, NAMESPACE: NODES | LEASE},
        ),
        (
            {**cases.NAMESPACED, "operator": {"readNodes": False}},
            {"elsewhere": {"nodes": "get"}, "team-a": ON_JOBS | {"nodes": "get"}},
        ),
        (
            {**cases.NAMESPACED, "operator": {"forceDelete": False}},
            {"team-a": ON_JOBS_ALONE | NODES, "team-b": ON_JOBS_ALONE | NODES},
        ),
        (
            {**cases.NAMESPACED, "rbac": {"nodes": False}},
            {"elsewhere": {}, "team-a": ON_JOBS, "team-b": ON_JOBS, NAMESPACE: LEASE},
        ),
    ],
    ids=[
        "all namespaces",
        "two namespaces",
        "two namespaces, GPUs not looked for",
        "two namespaces, pods on dead nodes left alone",
        "two namespaces, no cluster right",
    ],
)
def test_the_operator_may_do_this_and_nothing_else(
    server: Server, helm: Helm, tmp_path: Path, case: Object, expected: dict[str, dict[str, str]]
) -> None:
    objects = [each for each in helm.template(tmp_path, case) if "rbac" in each["apiVersion"]]
    try:
        for each in objects:
            apply(server, each)
        assert {namespace: rights(server, namespace) for namespace in expected} == expected
        assert may(server, "create", "secrets")
        assert not any(may(server, verb, "secrets") for verb in ("get", "list", "watch", "patch", "update", "delete"))
    finally:
        for each in objects:
            server.api.call("DELETE", path(each))


def pod(namespace: str, name: str, **labels: str) -> Object:
    container = {"name": "c", "image": "i"}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


def test_the_operator_may_declare_pods_of_jobs_dead_and_no_other(server: Server, helm: Helm, tmp_path: Path) -> None:
    """Its role says `pods`; the admission policy says which, and what may be written."""
    kinds = {"ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    objects = [each for each in helm.template(tmp_path, cases.DEFAULT) if each["kind"] in kinds]
    ours = {"app.kubernetes.io/managed-by": "finetune-operator"}
    places = {
        "ours": ("team-a", ours),
        "theirs": ("team-a", {"app": "web"}),
        "bare": ("team-a", {}),
        "system": ("kube-system", ours),
    }
    server.api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "kube-system"}})
    operator = {"Impersonate_User": f"system:serviceaccount:{NAMESPACE}:{RELEASE}"}

    def at(name: str) -> str:
        return f"/api/v1/namespaces/{places[name][0]}/pods/{name}"

    def fail(name: str, **more: Any) -> str:
        status = {"phase": "Failed", "reason": "NodeLost", **more}
        answer = server.api.call(
            "PATCH", f"{at(name)}/status", {"status": status}, Content_Type="application/merge-patch+json", **operator
        )
        return "" if answer.status == 200 else answer.message

    def deleted(name: str) -> str:
        answer = server.api.call("DELETE", f"{at(name)}?gracePeriodSeconds=0&dryRun=All", **operator)
        return "" if answer.status == 200 else answer.message

    try:
        for namespace in {namespace for namespace, _ in places.values()}:
            account = {"metadata": {"name": "default"}}
            server.api.call("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
        for name, (namespace, labels) in places.items():
            made = server.api.call("POST", f"/api/v1/namespaces/{namespace}/pods", pod(namespace, name, **labels))
            assert made.status == 201, made.message
        for each in objects:
            apply(server, each)
        deadline = time.monotonic() + 60
        while "pods of FineTuneJobs only" not in deleted("theirs"):  # a policy is in force a moment after it is made
            assert time.monotonic() < deadline
        assert "pods of FineTuneJobs only" in deleted("bare")
        assert "in kube-system" in deleted("system")
        assert "pods of FineTuneJobs only" in fail("theirs")
        assert "leave its addresses as they are" in fail("ours", podIP="10.9.9.9", podIPs=[{"ip": "10.9.9.9"}])
        assert "mark a pod as failed" in fail("ours", phase="Running")
        assert (deleted("ours"), fail("ours")) == ("", "")
        everybody = server.api.call("DELETE", f"{at('theirs')}?gracePeriodSeconds=0&dryRun=All")
        assert everybody.status == 200, "the policy is about the operator alone"
    finally:
        for each in objects:
            server.api.call("DELETE", path(each))
        for name in places:
            server.api.call("DELETE", f"{at(name)}?gracePeriodSeconds=0")


def test_helm_installs_upgrades_and_leaves_jobs_behind(server: Server, helm: Helm, tmp_path: Path) -> None:
    """Install, upgrade, uninstall, install again: the token key and the CRD are the same throughout."""
    helm = Helm(helm.program, ("--namespace", NAMESPACE, "--kubeconfig", str(server.kubeconfig)))
    key = f"/api/v1/namespaces/{NAMESPACE}/secrets/{RELEASE}-token-key"
    crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune.dev"
    role = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{RELEASE}"

    notes = helm("install", RELEASE, CHART, "--values", written(tmp_path, {"extraEnv": cases.EVERYTHING["extraEnv"]}))
    assert "runs the FineTuneJobs of all namespaces" in notes.stdout
    first, definition = server.api.call("GET", key).body["data"], server.api.call("GET", crd).body["metadata"]["uid"]
    assert server.api.call("GET", role).status == 200

    notes = helm("upgrade", RELEASE, CHART, "--values", written(tmp_path, cases.NAMESPACED))
    assert "runs the FineTuneJobs of team-a, team-b" in notes.stdout
    assert server.api.call("GET", key).body["data"] == first
    assert server.api.call("GET", role).status == 404  # it keeps no right that it does not need any more

    helm("uninstall", RELEASE)
    helm("install", RELEASE, CHART)
    assert server.api.call("GET", key).body["data"] == first
    assert server.api.call("GET", crd).body["metadata"]["uid"] == definition
    helm("uninstall", RELEASE)
