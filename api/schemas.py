"""Bodies of requests and responses, as OpenAPI describes them."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shared.signature import MAX_TEXT, label_fault

CallerId = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class Body(BaseModel):
    """A request body: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Predict(Body):
    """Rows to score. `inputs` are rows already in the live version's scaled space."""

    raw_features: list[dict[str, Any]] | None = Field(None, min_length=1, description="one object per row")
    inputs: list[list[float]] | None = Field(None, min_length=1, description="scaled rows")
    true_labels: list[str | None] | None = Field(None, description="the true class of each row, or null")
    ids: list[str | None] | None = Field(None, description="your own id of each row; sent again: no double")
    model_version: int | None = Field(None, description="refuse (409) unless this version is live")


class Prediction(BaseModel):
    """One entry per row, in order."""

    predictions: list[str]
    probabilities: list[dict[str, float]] = Field(description="class → probability")
    prediction_ids: list[UUID] | None = Field(description="null: not recorded")
    model_version: int = Field(description="the live version")
    model_versions: list[int] = Field(description="the version that scored each row")
    counted: int = Field(description="first labels of their prediction in this request")


class LabelIn(Body):
    """The true class of one prediction, named by our id or by the caller's."""

    prediction_id: Annotated[UUID, Field(strict=False)] | None = None
    id: CallerId | None = None
    true_label: str = Field(json_schema_extra={"minLength": 1, "maxLength": MAX_TEXT})

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
    reason: str | None = Field(None, max_length=1000)

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
