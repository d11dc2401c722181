"""The OpenAPI document: FastAPI's own, and what the plain routes say of themselves."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.admission import METRICS, OPEN, UNLIMITED
from api.errors import MEDIA_TYPE
from api.schemas import LabelsIn, Predict, Prediction, RetrainIn, describe_rows
from api.serving import ServingPlan

REF = "#/components/schemas/{model}"
_FALLBACK = {"monthly_spend": 50.0, "plan_type": "Basic"}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "detail": {"type": "string"},
                    "row": {"type": "integer"},
                    "feature": {"type": "string"},
                },
            },
        },
        "error_count": {"type": "integer"},
    },
}
_REQUEST_ID = {
    "description": "names the request in the log; the X-Request-ID it was sent with, if that is 1 to 128"
    " printable ASCII characters without a space, else a new one",
    "required": True,
    "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
}
_STATUSES = {
    "400": "not JSON, or not a request that HTTP knows",
    "401": "a key is needed",
    "403": "the key opens nothing here",
    "404": "nothing is there",
    "408": "the body did not arrive in time; nothing was written",
    "409": "it contradicts what is stored or live",
    "413": "too many rows or bytes",
    "415": "the body isn't declared as JSON",
    "422": "every fault, by row and feature; nothing was written",
    "429": "the rate of this key or address is used up; nothing was written; Retry-After says for how long",
    "503": "no model yet; or too many requests at once, nothing was written; or Postgres did not answer in"
    " time, it may have been stored: send it again with the same ids. Retry-After says when",
}
_OF_BODIES = {"400", "408", "409", "413", "415"}
_ID = "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"


def build(app: FastAPI, plan: ServingPlan | None, *, keyed: bool = False) -> dict[str, Any]:
    """The document; what it says of `/predict` follows the live version.

    Args:
        app: whose routes it describes.
        plan: what is live, if anything is.
        keyed: whether an API key is needed.
    """
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = document.setdefault("components", {})
    components["headers"] = {"RequestId": _REQUEST_ID}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schemas = components.setdefault("schemas", {})
    for model in (Predict, Prediction, LabelsIn, RetrainIn):
        schema = model.model_json_schema(ref_template=REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    if plan:
        describe_rows(schemas["Predict"], plan.model.signature, width=len(plan.model.scaled_features))
    schemas["Problem"] = _PROBLEM
    document["paths"]["/predict"] = {"post": _predict()}
    _body(document, "/predict", Predict, predict_example(plan))
    _body(document, "/labels", LabelsIn, {"labels": [{"prediction_id": _ID, "true_label": _a_class(plan)}]})
    _body(document, "/admin/retrain", RetrainIn, {"force": False, "reason": "new price list"}, required=False)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _describe_errors(path, method, operation, keyed=keyed)
    return document


def predict_example(plan: ServingPlan | None) -> dict[str, Any]:
    """A body that the live version accepts."""
    row = plan.model.example() if plan else _FALLBACK
    return {"raw_features": [row], "true_labels": [_a_class(plan)]}


def _a_class(plan: ServingPlan | None) -> str:
    return plan.model.classes[0] if plan else "Premium Plan"


def _predict() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": REF.format(model=Prediction.__name__)}}}
    return {
        "tags": ["predictions"],
        "summary": "Predict",
        "description": "Score rows with the live version; the answer comes once they are stored.",
        "operationId": "predict",
        "responses": {"200": {"description": "one entry per row, in order", "content": content}},
    }


def _body(
    document: dict[str, Any],
    path: str,
    model: type[BaseModel],
    example: dict[str, Any],
    *,
    required: bool = True,
) -> None:
    schema = {"$ref": REF.format(model=model.__name__)}
    document["paths"][path]["post"]["requestBody"] = {
        "required": required,
        "content": {"application/json": {"schema": schema, "example": example}},
    }


def _describe_errors(path: str, method: str, operation: dict[str, Any], *, keyed: bool) -> None:
    needed = keyed or path.startswith("/admin") or path == METRICS
    if path in OPEN:
        operation["security"] = []
    else:
        operation["security"] = [{"key": []}] if needed else [{"key": []}, {}]
    problem = {MEDIA_TYPE: {"schema": {"$ref": REF.format(model="Problem")}}}
    for status, description in _STATUSES.items():
        if (method == "get" and status in _OF_BODIES) or (path in UNLIMITED and status == "429"):
            continue
        known = operation["responses"].get(status, {}).get("description", description)
        operation["responses"][status] = {"description": known, "content": dict(problem)}
    for response in operation["responses"].values():
        response["headers"] = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}
    if path == "/ready":  # it answers in its own words, unless it takes too long
        operation["responses"]["503"]["content"].update(operation["responses"]["200"]["content"])
