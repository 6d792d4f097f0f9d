"""Tables of what the fields of `spec` are marked as. Every table is made from the markers (`markers.py`)."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from finetune_api.v1alpha1.markers import (
    ClusterOnly,
    Fixed,
    Later,
    Marker,
    Mutable,
    ShapesData,
    WithoutEffect,
    marker_of,
)
from finetune_api.v1alpha1.tree import spec_fields


def _marked(kind: type[Marker]) -> dict[str, Marker]:
    """Return the marker of a kind for each field that carries one, by path."""
    return {branch.dotted: marker for branch in spec_fields() if (marker := marker_of(branch.info, kind)) is not None}


def _top(path: str) -> str:
    """Return the field of `spec` that a path leads through."""
    return path.split(".")[1]


def _outermost(paths: Collection[str]) -> Iterator[str]:
    """Yield the paths that lead through none of the others."""
    for path in paths:
        above = path.rpartition(".")[0]
        while above and above not in paths:
            above = above.rpartition(".")[0]
        if not above:
            yield path


LATER: dict[str, Later] = _marked(Later)
"""Fields that are refused as not supported yet, by path."""

WITHOUT_EFFECT: dict[str, str] = {path: marker.reason for path, marker in _marked(WithoutEffect).items()}
"""Fields that are accepted and change nothing, by path, each with the reason."""

SHAPES_DATA: dict[str, ShapesData] = _marked(ShapesData)
"""Fields that the prepared data depends on, by path."""

_CHANGING: dict[str, Mutable] = _marked(Mutable)

MUTABLE: dict[str, Mutable] = {_top(path): marker for path, marker in _CHANGING.items() if path.count(".") == 1}
"""Fields of `spec` that may change after the job was created, by name. What is below them may change too."""

MUTABLE_BELOW: tuple[str, ...] = tuple(path for path in _CHANGING if path.count(".") > 1)
"""Paths of fields that may change at any time, although the field of `spec` that holds them may not."""

FIXED_BELOW: tuple[str, ...] = tuple(path for path in _marked(Fixed) if _top(path) in MUTABLE)
"""Paths of fields that may not change, although the field of `spec` that holds them may."""

SAME_RUN: frozenset[str] = frozenset(name for name, mutable in MUTABLE.items() if mutable.same_run)
"""Fields of `spec` that may change while a run goes on. All the others are the identity of the run."""

CLUSTER_ONLY: tuple[str, ...] = tuple(sorted(_outermost(_marked(ClusterOnly))))
"""Paths of the fields that have no effect where the job runs on one machine. What is below them has none either."""


def run_identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a spec, in JSON, that identifies a run: without the fields that may change while it goes on.

    Of a spec that has no field of MUTABLE_BELOW this is what older versions took, so that their runs go on.
    """
    kept = {name: value for name, value in spec.items() if name not in SAME_RUN}
    for path in MUTABLE_BELOW:
        _, top, below = path.split(".")
        value = kept.get(top)
        if isinstance(value, Mapping) and below in value:
            kept[top] = {name: one for name, one in value.items() if name != below}
            if not kept[top]:
                del kept[top]
    return kept
