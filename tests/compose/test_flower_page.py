"""Flower's page of a job, in a real browser; its picture stays in `test-artifacts/`."""

import re
from pathlib import Path

import pytest

from tests.compose.engine import ROOT, docker
from tests.compose.stack import ComposeStack

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]  # the first of them builds

IMAGE = "ratchet-test-browser"
ARTIFACTS = ROOT / "test-artifacts"
PNG = b"\x89PNG\r\n"
CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage --user-data-dir=/tmp/profile"
    " --window-size=1280,1400 --virtual-time-budget=8000"
)


@pytest.fixture(scope="module")
def pictures(stack: ComposeStack) -> Path:
    """Where pictures go: the browser's user may write there."""
    docker("build", "--quiet", "--tag", IMAGE, str(ROOT / "tests" / "compose" / "images" / "browser"))
    ARTIFACTS.mkdir(exist_ok=True)
    ARTIFACTS.chmod(0o777)
    return ARTIFACTS


def look(stack: ComposeStack, path: str, picture: Path) -> str:
    """Open a page as Flower's user, keep a picture of it; answers its document as the browser sees it."""
    url = f"http://admin:{stack.secret('FLOWER_PASSWORD')}@127.0.0.1:{stack.flower_port}{path}"
    run = (
        "run",
        "--rm",
        "--network=host",
        "--volume",
        f"{picture.parent}:/pictures",
        IMAGE,
        *CHROMIUM.split(),
    )
    docker(*run, f"--screenshot=/pictures/{picture.name}", url)
    return docker(*run, "--dump-dom", url)


def test_the_page_of_a_job_says_what_came_of_it(stack: ComposeStack, relearned: int, pictures: Path) -> None:
    task = next(t for t in stack.flower_tasks(state="SUCCESS") if f"job {relearned}: version" in t["result"])
    picture = pictures / "flower-task.png"
    picture.unlink(missing_ok=True)
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", look(stack, f"/task/{task['uuid']}", picture)))
    assert "ratchet.retrain" in page
    assert f"job {relearned}: version" in page
    assert "published" in page
    assert "threshold" in page
    assert picture.read_bytes().startswith(PNG)


def test_the_list_of_tasks_names_jobs_alone(stack: ComposeStack, relearned: int, pictures: Path) -> None:
    picture = pictures / "flower-tasks.png"
    picture.unlink(missing_ok=True)
    page = look(stack, "/tasks", picture)
    assert f"job-{relearned}-" in page
    assert "ratchet.sweep" not in re.sub(r"<select.*?</select>", "", page, flags=re.DOTALL)
    assert picture.read_bytes().startswith(PNG)
