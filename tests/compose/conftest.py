"""One engine and one stack for all of these tests; what changes the stack leaves it as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.engine import reach
from tests.compose.stack import UNSEEN_ROWS, ComposeStack, checkout, wait_for, write_csv
from tests.readme import CONTAINERS, FIRST_MODEL, SCALE


@pytest.fixture(scope="session")
def engine() -> None:
    """A container engine, or the test is skipped and says why."""
    reason = reach()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a fresh clone holds, its images' source among it."""
    return checkout(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def images(engine: None, folder: Path) -> Iterator[ComposeStack]:
    """A stack whose images are built, and that is not up yet."""
    stack = ComposeStack("ratchet-test", folder)
    make_env, _ = CONTAINERS.splitlines()
    try:
        stack.run(make_env)
        stack.down()  # what a run that was killed left
        stack.compose("build --quiet", seconds=1200)
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="session")
def empty(images: ComposeStack) -> ComposeStack:
    """The stack, up and healthy, without a model: some containers of the API, two processes in each."""
    _, up = CONTAINERS.splitlines()
    images.run(up, seconds=300)
    images.env["WEB_CONCURRENCY"] = "2"
    images.run(images.here(SCALE), seconds=300)
    return images


@pytest.fixture(scope="session")
def stack(empty: ComposeStack) -> ComposeStack:
    """The stack with version 1 live on every replica."""
    write_csv(empty.folder)
    assert "version 1 is live" in empty.run(FIRST_MODEL)
    wait_for("version 1 is live on every replica", lambda: empty.versions() == {1})
    return empty


@pytest.fixture(scope="session")
def relearned(stack: ComposeStack) -> int:
    """The job whose version every replica serves now: labelled traffic went to both of them."""
    before = stack.versions()
    answers = stack.send_labelled(UNSEEN_ROWS, start=5000)
    assert sum(answer["counted"] for answer in answers) == UNSEEN_ROWS
    wait_for("the threshold's job ends", lambda: stack.job(trigger="threshold", state="succeeded"))
    job = stack.job(trigger="threshold", state="succeeded")
    assert job is not None
    new = {job["result"]["version"]}
    wait_for("its version is live on every replica", lambda: stack.versions() == new)
    assert new != before
    return int(job["id"])
