"""The artifact store: whole or absent, and never altered unnoticed."""

from pathlib import Path

import orjson
import pytest

from shared.artifacts import MANIFEST, ArtifactStore, Stored
from shared.errors import ArtifactError

FILES = {"model.onnx": b"\x00\x01" * 5000, "report.json": b"{}", "empty": b""}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """A store with one set, `versions/1-1`."""
    made = ArtifactStore((tmp_path / "a store, größer").as_uri())
    made.put_set("versions/1-1", FILES)
    return made


def at(store: ArtifactStore, name: str) -> Path:
    return store.path(f"versions/1-1/{name}")


def test_a_set_reads_as_it_was_stored(store: ArtifactStore) -> None:
    assert {name: store.read("versions/1-1", name) for name in FILES} == FILES
    listed = store.manifest("versions/1-1")
    assert {name: stored.size for name, stored in listed.items()} == {k: len(v) for k, v in FILES.items()}
    assert store.root.name == "a store, größer"


def test_nothing_but_the_files_is_left_behind(store: ArtifactStore) -> None:
    assert {path.name for path in store.path("versions/1-1").iterdir()} == {*FILES, MANIFEST}


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    plain, seen = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        seen.append(Path(target).name)
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    store.put_set("s", FILES)
    assert seen == [*FILES, MANIFEST]


def test_a_set_whose_writing_stopped_half_way_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    plain = Path.write_bytes

    def write_bytes(self: Path, content: bytes) -> int:
        if self.name.startswith("report.json"):
            plain(self, content[:1])
            raise OSError(28, "No space left on device")
        return plain(self, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space"):
        store.put_set("s", FILES)
    with pytest.raises(ArtifactError, match="No such file"):
        store.read("s", "model.onnx")
    assert [path.name for path in store.path("s").iterdir()] == ["model.onnx"]


def test_a_draft_is_not_seen_until_it_is_whole(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    with store.draft("parts/a.parquet") as draft:
        draft.path.write_bytes(b"content")
        assert not store.path("parts/a.parquet").exists()
        assert draft.path.parent == store.path("parts")  # a rename must not cross file systems
    assert store.check_file("parts/a.parquet", draft.stored).read_bytes() == b"content"


def test_a_draft_that_failed_leaves_what_was_there_before(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    with store.draft("a") as draft:
        draft.path.write_bytes(b"first")
    stored = draft.stored

    def be_interrupted() -> None:
        with store.draft("a") as draft:
            draft.path.write_bytes(b"second")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert store.check_file("a", stored).read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_truncated_file_is_refused(store: ArtifactStore) -> None:
    at(store, "model.onnx").write_bytes(FILES["model.onnx"][:-1])
    with pytest.raises(ArtifactError, match=r"versions/1-1/model\.onnx: 9999 bytes where 10000 were stored"):
        store.read("versions/1-1", "model.onnx")


def test_an_altered_file_of_the_same_length_is_refused(store: ArtifactStore) -> None:
    content = bytearray(FILES["model.onnx"])
    content[4321] ^= 1
    at(store, "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx: its checksum is not the one stored"):
        store.read("versions/1-1", "model.onnx")
    assert store.read("versions/1-1", "report.json") == b"{}"


def test_a_missing_file_or_set_is_named(store: ArtifactStore) -> None:
    at(store, "report.json").unlink()
    with pytest.raises(ArtifactError, match=r"versions/1-1/report\.json: No such file"):
        store.read("versions/1-1", "report.json")
    with pytest.raises(ArtifactError, match=r"the manifest lists no other\.txt"):
        store.read("versions/1-1", "other.txt")
    with pytest.raises(ArtifactError, match=r"versions/2-1/manifest\.json: No such file"):
        store.manifest("versions/2-1")


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"format": 2, "files": {}}, "format 2 where 1 is known"),
        ({"files": {}}, "not a manifest"),
        ({"format": 1}, "not a manifest"),
        ({"format": 1, "files": {"a": {"size": 1}}}, "not a manifest"),
        ({"format": 1, "files": {"a": 7}}, "not a manifest"),
        ({"format": 1, "files": "a"}, "not a manifest"),
        ([1], "not a manifest"),
        (None, "not a manifest"),
    ],
)
def test_a_manifest_of_another_format_is_refused(store: ArtifactStore, manifest: object, said: str) -> None:
    at(store, MANIFEST).write_bytes(orjson.dumps(manifest))
    with pytest.raises(ArtifactError, match=said):
        store.read("versions/1-1", "model.onnx")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_torn_manifest_is_refused(store: ArtifactStore, content: bytes) -> None:
    at(store, MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match="not a manifest"):
        store.manifest("versions/1-1")


def test_a_single_file_is_checked_against_what_its_owner_knows(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    with store.draft("part") as draft:
        draft.path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert draft.stored == Stored(size=3, sha256=digest)
    store.path("part").write_bytes(b"abd")
    with pytest.raises(ArtifactError, match="part: its size or checksum is not the one stored"):
        store.check_file("part", draft.stored)
    store.path("part").unlink()
    with pytest.raises(ArtifactError, match="part: No such file"):
        store.check_file("part", draft.stored)


def test_a_removed_set_is_gone_manifest_first_and_again_is_harmless(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.artifacts.shutil.rmtree", lambda *_, **__: None)  # killed in between
    store.remove_set("versions/1-1")
    assert at(store, "model.onnx").exists()
    with pytest.raises(ArtifactError):
        store.read("versions/1-1", "model.onnx")
    monkeypatch.undo()
    store.put_set("versions/2-1", FILES)
    store.remove_set("versions/1-1")
    store.remove_set("versions/1-1")
    assert [path.name for path in store.path("versions").iterdir()] == ["2-1"]
    assert store.read("versions/2-1", "report.json") == b"{}"
