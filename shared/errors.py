"""Errors of the domain. Each knows its HTTP status; one handler in the API renders them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

FaultKind = Literal["missing", "type", "range", "unknown_feature", "label", "id", "other"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
"""What can be wrong with a row; `range`: the right type, and no value that is taken."""

MAX_FAULTS = 1000
"""A request with more faults is not read further: nobody mends them one by one."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing wrong with a request: where, and what. `kind` is for counting, not for the client."""

    detail: str
    row: int | None = None
    feature: str | None = None
    kind: FaultKind = "other"


class RatchetError(Exception):
    """Something went wrong in Ratchet. `retry_after`: seconds until it is worth another try."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retry_after: int | None = None

    def __init__(self, detail: str, *, faults: Sequence[Fault] = (), retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.faults = tuple(faults)
        if retry_after is not None:
            self.retry_after = retry_after

    @classmethod
    def slug(cls) -> str:
        """The title as a word: `Too large` → `too_large`."""
        return cls.title.lower().replace(" ", "_")


class SettingsError(RatchetError):
    """A setting's value is wrong; the text names the variable."""

    title = "Wrong setting"


class NotJSON(RatchetError):
    """The body isn't JSON; the text says where."""

    status = 400
    title = "Not JSON"


class Unauthorized(RatchetError):
    """No key was sent."""

    status = 401
    title = "Key needed"


class Forbidden(RatchetError):
    """The key sent opens nothing here."""

    status = 403
    title = "Key refused"


class NotFound(RatchetError):
    """What the path names does not exist."""

    status = 404
    title = "Not found"


class RequestTimeout(RatchetError):
    """The body did not arrive in time; nothing was written."""

    status = 408
    title = "Request timeout"


class Conflict(RatchetError):
    """The request contradicts what is already stored or live."""

    status = 409
    title = "Conflict"


class TooLarge(RatchetError):
    """More rows or bytes than one request may have."""

    status = 413
    title = "Too large"


class UnsupportedMediaType(RatchetError):
    """The body isn't declared as JSON."""

    status = 415
    title = "Unsupported media type"


class Invalid(RatchetError):
    """The request is JSON and wrong; `faults` name each row and feature."""

    status = 422
    title = "Invalid request"


class TooManyRequests(RatchetError):
    """The caller has used up its rate; `retry_after` says when it may come again."""

    status = 429
    title = "Too many requests"


class Unavailable(RatchetError):
    """A server that the request needs does not answer; sending it again later is right."""

    status = 503
    title = "Unavailable"
    retry_after = 1


class Overloaded(Unavailable):
    """This process has as much to do as it may take on; nothing was written."""

    title = "Overloaded"


class NoModel(Unavailable):
    """No version is live yet."""

    title = "No model yet"
    retry_after = 5


class ClaimLost(RatchetError):
    """Another worker has raised the fence: this claim may write nothing more."""

    title = "Claim lost"


class JobSkipped(RatchetError):
    """There is nothing to train on; the text is the job's reason."""

    title = "Nothing to train on"


class ParityError(RatchetError):
    """An exported graph disagrees with the model that was trained."""

    title = "Export refused"


class ArtifactError(RatchetError):
    """An artifact is missing, altered or can't be read."""

    title = "Artifact unusable"


class DataError(RatchetError):
    """A file of data can't be used; the text says which column and what to do."""

    status = 422
    title = "Unusable data"
