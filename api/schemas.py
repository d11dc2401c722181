"""Bodies of requests and responses, as OpenAPI describes them."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.config import JsonDict

from shared.signature import FLOAT32_MAX, MAX_TEXT, Feature, Signature, label_fault

NO_NUL = r"^[^\x00]*$"
"""Postgres can't store that character. As a pattern in the description; the checks say it in words."""
TEXT: JsonDict = {"minLength": 1, "maxLength": MAX_TEXT, "pattern": NO_NUL}
CallerId = Annotated[str, Field(min_length=1, max_length=MAX_TEXT, json_schema_extra={"pattern": NO_NUL})]
Text = Annotated[str, Field(json_schema_extra=TEXT)]
Number = Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]


class Body(BaseModel):
    """A request body: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


_RAW: JsonDict = {
    "required": ["raw_features"],
    "properties": {"raw_features": {"type": "array"}},
}
_SCALED_ONLY: JsonDict = {
    "required": ["inputs"],
    "properties": {
        "inputs": {"type": "array"},
        "raw_features": {"type": "null"},
        "true_labels": {"type": ["array", "null"], "items": {"type": "null"}},
        "ids": {"type": ["array", "null"], "items": {"type": "null"}},
    },
}


class Predict(Body):
    """Rows to score; every list has one entry per row. `inputs` are rows in the live version's scaled space.

    Described here and checked by `read_query`, which is faster.
    """

    model_config = ConfigDict(json_schema_extra={"anyOf": [_RAW, _SCALED_ONLY]})

    raw_features: list[dict[str, Any]] | None = Field(None, min_length=1, description="one object per row")
    inputs: list[list[Number]] | None = Field(None, min_length=1, description="scaled rows")
    true_labels: list[Text | None] | None = Field(None, description="the true class of each row, or null")
    ids: list[Text | None] | None = Field(None, description="your own id of each row; sent again: no double")
    model_version: int | None = Field(None, description="refuse (409) unless this version is live")


def describe_rows(predict: dict[str, Any], signature: Signature, *, width: int) -> None:
    """Write the live features, and the width of a scaled row, into the schema of `Predict`."""
    row = {
        "type": "object",
        "properties": {feature.name: _describe(feature) for feature in signature.features},
        "required": [feature.name for feature in signature.features if feature.required],
        "additionalProperties": False,
    }
    rows, _null = predict["properties"]["raw_features"]["anyOf"]
    rows["items"] = row
    scaled, _null = predict["properties"]["inputs"]["anyOf"]
    scaled["items"].update(minItems=width, maxItems=width)


def _describe(feature: Feature) -> dict[str, Any]:
    null = [] if feature.required else ["null"]
    if feature.kind == "numeric":
        return {"type": ["number", *null], "minimum": -FLOAT32_MAX, "maximum": FLOAT32_MAX}
    limits = {**TEXT, "minLength": int(feature.required)}
    # a number is read as the text of it
    return {
        "type": ["string", "number", "boolean", *null],
        **limits,
        "minimum": 1 - 2**63,
        "maximum": 2**63 - 1,
    }


class Prediction(BaseModel):
    """One entry per row, in order."""

    predictions: list[str]
    probabilities: list[dict[str, float]] = Field(description="class → probability")
    prediction_ids: list[UUID] | None = Field(description="null: not recorded")
    model_version: int = Field(description="the live version")
    model_versions: list[int] = Field(description="the version that scored each row")
    counted: int = Field(description="first labels of their prediction in this request")


def _only(name: str, other: str) -> JsonDict:
    return {"required": [name], "properties": {name: {"type": "string"}, other: {"type": "null"}}}


class LabelIn(Body):
    """The true class of one prediction, named by our id or by the caller's."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [_only("prediction_id", "id"), _only("id", "prediction_id")]}
    )

    prediction_id: Annotated[UUID, Field(strict=False)] | None = None
    id: CallerId | None = None
    true_label: Text

    @field_validator("true_label")
    @classmethod
    def _usable(cls, value: str) -> str:
        if fault := label_fault(value):
            raise ValueError(fault)
        return value

    @field_validator("id")
    @classmethod
    def _storable(cls, value: str | None) -> str | None:
        if value and "\x00" in value:
            raise ValueError("an id with a NUL character")
        return value

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if (self.prediction_id is None) == (self.id is None):
            raise ValueError("name the prediction by prediction_id or by id, one of them")
        return self


class LabelsIn(Body):
    """Labels that arrive after their predictions."""

    labels: list[LabelIn] = Field(min_length=1)


class LabelsOut(BaseModel):
    """What became of the labels."""

    accepted: int = Field(description="first labels of their prediction")
    corrected: int = Field(description="replace an older label in all later training")
    repeated: int = Field(description="known already: nothing changed")
    unknown: list[str] = Field(description="ids that name no prediction")


class RetrainIn(Body):
    """Why, and whether without a new label too."""

    force: bool = False
    reason: Annotated[str, Field(max_length=1000, json_schema_extra={"pattern": NO_NUL})] | None = None

    @field_validator("reason")
    @classmethod
    def _storable(cls, value: str | None) -> str | None:
        if value and "\x00" in value:
            raise ValueError("a reason with a NUL character")
        return value


class LogLine(BaseModel):
    """One step of a job."""

    at: datetime
    step: int
    note: str


class JobOut(BaseModel):
    """One run of the retrain workflow."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    state: str = Field(description="queued, running, succeeded, rejected, skipped or failed")
    trigger: str
    reason: str | None
    step: str | None
    step_number: int = Field(description="1 to 12")
    progress: float = Field(description="0 to 1")
    failures: int
    rows: dict[str, Any]
    result: dict[str, Any]
    requested_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    log: list[LogLine]


class JobRequested(BaseModel):
    """The job, and where to watch it."""

    job: JobOut
    url: str
    new: bool = Field(description="false: it was queued or running already")


class LabelCountsOut(BaseModel):
    """All labels by state; total = trained + waiting + claimed + superseded."""

    model_config = ConfigDict(from_attributes=True)

    total: int
    trained: int
    waiting: int
    claimed: int
    superseded: int


class StatusOut(BaseModel):
    """How far it is to the next retrain."""

    current_count: int
    threshold: int
    remaining: int
    progress_percent: float
    model_version: int | None
    tally: int | None = Field(description="what Redis believes; null: unknown")
    labels: LabelCountsOut
    active_job: JobOut | None
    last_job: JobOut | None


class VersionOut(BaseModel):
    """One trained model."""

    version: int
    job_id: int
    live: bool
    published: bool = Field(description="false: the gate rejected it")
    created_at: datetime
    artifacts: str = Field(description="kept, or artifacts removed")
    classes: list[str]
    metrics: dict[str, Any]


class VersionDetail(VersionOut):
    """One trained model with all that is known of it."""

    signature: list[dict[str, Any]]
    target: str
    scaled_features: list[dict[str, Any]] = Field(description="in order, with mean and scale")
    categories: dict[str, list[str]]
    report: dict[str, Any]
