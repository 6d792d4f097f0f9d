"""Plans with other values, for tests and benchmarks."""

from typing import Any

from finetune_api.plan import PART_OF, PARTS, Plan


def revised(plan: Plan, **values: Any) -> Plan:
    """Return a plan with other values, each in the part that has a field of its name.

    Raises:
        ValueError: neither the plan nor a part of it has a field of that name.
    """
    parts = {name: getattr(plan, name) for name in PARTS}
    own: dict[str, Any] = {}
    for name, value in values.items():
        if name in PART_OF:
            parts[PART_OF[name]] = parts[PART_OF[name]].model_copy(update={name: value})
        elif name in Plan.model_fields:
            own[name] = value
        else:
            raise ValueError(f"neither a plan nor a part of it has a field `{name}`")
    return plan.model_copy(update={**parts, **own})
