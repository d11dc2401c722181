"""Loaded by schemathesis: the one rule of `/predict` that JSON Schema has no word for."""

from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode, HookContext


@schemathesis.hook
def map_case(context: HookContext, case: Case) -> Case:
    """Make a valid case one that keeps it: every list as long as there are rows, and no id twice."""
    valid = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    if valid and case.operation.label == "POST /predict" and isinstance(case.body, dict):
        case.body = _aligned(case.body)
    return case


def _aligned(body: dict[str, Any]) -> dict[str, Any]:
    lists = {name: body[name] for name in ("raw_features", "inputs", "true_labels", "ids") if body.get(name)}
    leading = lists.get("raw_features") or lists.get("inputs")
    if leading is None:
        return body
    size = min(len(given) for given in lists.values())
    cut = {name: given[:size] for name, given in lists.items()}
    empty = {name: None for name in ("true_labels", "ids") if body.get(name) == []}
    ids = cut.get("ids", [])
    if len({id_ for id_ in ids if id_ is not None}) < sum(id_ is not None for id_ in ids):
        empty["ids"] = None
    return {**body, **cut, **empty}
