"""The store of models and dataset parts: atomic, checksummed, named by URL.

A set of artifacts exists once its `manifest.json`, written last, exists. Readers never delete.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import orjson

from shared.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A file in the store: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(kw_only=True)
class Draft:
    """A file being written: `path` until the block ends, `stored` after it."""

    path: Path
    stored: Stored = field(default_factory=lambda: Stored(size=0, sha256=""))


class ArtifactStore:
    """Files under one folder; keys are relative and use slashes."""

    def __init__(self, url: str) -> None:
        """Open the store at a `file:///` URL; the folder is made when first written to."""
        self.root = Path(unquote(urlsplit(url).path))

    def path(self, key: str) -> Path:
        """Where a key's file is."""
        return self.root / key

    @contextmanager
    def draft(self, key: str) -> Iterator[Draft]:
        """Write a file aside; when the block ends well it is synced, renamed and in the store."""
        final = self.path(key)
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = Draft(path=final.with_name(f"{final.name}.{os.getpid()}.part"))
        try:
            yield draft
            draft.stored = _seal(draft.path)
            draft.path.rename(final)
            _sync_folder(final.parent)
        finally:
            draft.path.unlink(missing_ok=True)

    def put_set(self, key: str, files: Mapping[str, bytes]) -> None:
        """Store a set of files and then the manifest that makes it exist."""
        manifest = {}
        for name, content in files.items():
            with self.draft(f"{key}/{name}") as draft:
                draft.path.write_bytes(content)
            manifest[name] = {"size": draft.stored.size, "sha256": draft.stored.sha256}
        with self.draft(f"{key}/{MANIFEST}") as draft:
            draft.path.write_bytes(orjson.dumps({"format": FORMAT, "files": manifest}))

    def read(self, key: str, name: str) -> bytes:
        """One file of a set, checked against its manifest.

        Raises:
            ArtifactError: the set or the file is missing, altered or of another format.
        """
        listed = self.manifest(key)
        if name not in listed:
            raise ArtifactError(f"{key}: the manifest lists no {name}")
        try:
            content = self.path(f"{key}/{name}").read_bytes()
        except OSError as exc:
            raise ArtifactError(f"{key}/{name}: {exc.strerror}") from exc
        if len(content) != listed[name].size:
            raise ArtifactError(f"{key}/{name}: {len(content)} bytes where {listed[name].size} were stored")
        if hashlib.sha256(content).hexdigest() != listed[name].sha256:
            raise ArtifactError(f"{key}/{name}: its checksum is not the one stored")
        return content

    def manifest(self, key: str) -> dict[str, Stored]:
        """The files of a set.

        Raises:
            ArtifactError: there is no readable manifest.
        """
        try:
            content = orjson.loads(self.path(f"{key}/{MANIFEST}").read_bytes())
            if content["format"] != FORMAT:
                raise ArtifactError(f"{key}: format {content['format']} where {FORMAT} is known")
            return {name: Stored(**entry) for name, entry in content["files"].items()}
        except OSError as exc:
            raise ArtifactError(f"{key}/{MANIFEST}: {exc.strerror}") from exc
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as exc:
            raise ArtifactError(f"{key}/{MANIFEST}: not a manifest") from exc

    def check_file(self, key: str, expected: Stored) -> Path:
        """The path of a single file whose checksum the caller knows.

        Raises:
            ArtifactError: it is missing or altered.
        """
        path = self.path(key)
        try:
            found = _digest(path)
        except OSError as exc:
            raise ArtifactError(f"{key}: {exc.strerror}") from exc
        if found != expected:
            raise ArtifactError(f"{key}: its size or checksum is not the one stored")
        return path

    def keys(self, folder: str) -> list[str]:
        """Keys of the files or sets in a folder, drafts among them."""
        path = self.path(folder)
        return [f"{folder}/{entry.name}" for entry in path.iterdir()] if path.is_dir() else []

    def remove_file(self, key: str) -> None:
        """Remove a file; again is harmless."""
        self.path(key).unlink(missing_ok=True)

    def remove_set(self, key: str) -> None:
        """Remove a set, manifest first, so that no half of it is ever taken for a whole."""
        self.path(f"{key}/{MANIFEST}").unlink(missing_ok=True)
        shutil.rmtree(self.path(key), ignore_errors=True)


def _digest(path: Path) -> Stored:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Stored(size=size, sha256=digest.hexdigest())


def _seal(path: Path) -> Stored:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _digest(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
