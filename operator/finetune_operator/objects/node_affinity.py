"""Which nodes the node selector and the required node affinity of a job allow, as the scheduler evaluates them. Pure.

Taints are ignored. The Python client has no evaluation of node affinity, so it stands here.
"""

from collections.abc import Mapping

from finetune_operator.objects.job_identity import AcceptedJob
from finetune_operator.objects.kinds import Object


def allows(job: AcceptedJob, name: str, labels: Mapping[str, str]) -> bool:
    """Return whether a training pod of the job may run on a node."""
    template = job.spec.pod_template
    if template is None:
        return True
    if any(labels.get(label) != value for label, value in template.node_selector.items()):
        return False
    affinity = (template.affinity or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    terms = (required or {}).get("nodeSelectorTerms") or []
    return not required or any(_matches(term, name, labels) for term in terms)


def _matches(term: Object, name: str, labels: Mapping[str, str]) -> bool:
    by_label = [_holds(requirement, labels) for requirement in term.get("matchExpressions") or ()]
    by_field = [_holds(requirement, {"metadata.name": name}) for requirement in term.get("matchFields") or ()]
    return bool(by_label or by_field) and all(by_label + by_field)  # an empty term matches no node


def _holds(requirement: Object, labels: Mapping[str, str]) -> bool:
    """Evaluate one requirement; a malformed one holds on no node."""
    value, values = labels.get(requirement.get("key", "")), requirement.get("values") or []
    match requirement.get("operator"):
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as comparison:
            try:
                number, limit = int(value or ""), int(values[0])
            except (ValueError, IndexError, TypeError):
                return False
            return number > limit if comparison == "Gt" else number < limit
        case _:
            return False
