"""What a hostile client sends over HTTP: refused with a clear 4xx, nothing written, and the API goes on."""

import gzip
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import pytest

from tests.live import Live
from tests.serving import ADMIN

HEADERS = {"Content-Type": "application/json", **ADMIN}
PATHS = ("/predict", "/labels", "/admin/retrain")
HERE = "@here@"
UUID = "0190a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
SQLISH = (
    "'; DROP TABLE predictions; --",
    '" OR 1=1 --',
    "Robert'); DELETE FROM labels;--",
    "%s %(id)s $1 :labels {0} ?",
    "\\'; SELECT pg_sleep(10); --",
    "a,b}{c,NULL",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "\u202eline\u2028feed\x7f\t\r\n",
    "🙂" * 100 + "?",
)


@pytest.fixture
def untouched(api: Live) -> Iterator[Live]:
    """The file's API; after the test nothing more is stored than before, and it predicts."""
    before = counts(api)
    yield api
    assert counts(api) == before
    assert api.predict().status_code == 200
    assert api.client.get("/ready").json()["ready"] is True


def counts(api: Live) -> dict[str, int]:
    """How many rows each table that a client can cause a row in holds."""
    return {**api.stored(), **api.query("SELECT count(*) AS jobs FROM retrain_jobs")[0]}


def refused(response: httpx.Response, *statuses: int) -> bool:
    """Whether a response is a problem with one of these statuses, and not a book."""
    assert response.status_code in statuses, (response.status_code, response.text[:500])
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["detail"]
    return len(response.content) < 10_000


def places(api: Live) -> Iterator[tuple[str, bytes]]:
    """Each body that would be accepted but for the one value marked in it, and its path."""
    width = len(api.client.get("/model").json()["scaled_features"])
    row = api.row
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/predict", {"raw_features": [{**row, "monthly_spend": HERE}]}),
        ("/predict", {"raw_features": [{**row, "plan_type": HERE}]}),
        ("/predict", {"raw_features": [row], "true_labels": [HERE]}),
        ("/predict", {"raw_features": [row], "ids": [HERE]}),
        ("/predict", {"raw_features": [row], "model_version": HERE}),
        ("/predict", {"inputs": [[0.0] * (width - 1) + [HERE]]}),
        ("/predict", {"raw_features": [row, HERE]}),
        ("/labels", {"labels": [{"id": "nobody", "true_label": HERE}]}),
        ("/labels", {"labels": [{"id": HERE, "true_label": "a"}]}),
        ("/labels", {"labels": [{"prediction_id": HERE, "true_label": "a"}]}),
        ("/admin/retrain", {"force": True, "reason": HERE}),
        ("/admin/retrain", {"force": HERE}),
    ]
    for path, body in bodies:
        yield path, orjson.dumps(body)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"-Infinity", id="Infinity"),
        pytest.param(b"1e999", id="beyond a double"),
        pytest.param(b"-" + b"9" * 5000, id="5,000 digits"),
        pytest.param(b"0" * 10, id="leading zeros"),
        pytest.param(b"0x10", id="hexadecimal"),
        pytest.param(b'"Ba\xffsic"', id="invalid UTF-8"),
        pytest.param(b'"\xed\xa0\x80"', id="a surrogate in UTF-8"),
        pytest.param(b'"\xc0\xaf"', id="overlong UTF-8"),
        pytest.param(rb'"\ud800"', id="a lone surrogate"),
        pytest.param(b'"a\x00b"', id="a bare NUL"),
        pytest.param(b"[" * 100_000, id="100,000 brackets"),
        pytest.param(b'{"a":' * 100_000, id="100,000 braces"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="100,000 brackets, closed"),
    ],
)
def test_what_is_not_json_is_400_wherever_it_stands(untouched: Live, value: bytes) -> None:
    for path, body in places(untouched):
        content = body.replace(orjson.dumps(HERE), value)
        assert refused(untouched.client.post(path, content=content, headers=HEADERS), 400), (path, body)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(rb'"a\u0000b"', id="NUL"),
        pytest.param(b'"' + b"x" * 1_000_000 + b'"', id="a million characters"),
        pytest.param(b"[" * 500 + b"]" * 500, id="500 lists"),
        pytest.param(b'{"a":' * 500 + b"1" + b"}" * 500, id="500 objects"),
        pytest.param(b"1" + b"0" * 300, id="300 digits"),
    ],
)
def test_json_that_is_no_value_of_ours_is_422_wherever_it_stands(untouched: Live, value: bytes) -> None:
    for path, body in places(untouched):
        content = body.replace(orjson.dumps(HERE), value)
        assert refused(untouched.client.post(path, content=content, headers=HEADERS), 422), (path, body)


@pytest.mark.parametrize("name", [*SQLISH, "a\x00b", "", "x" * 1_000_000, "__proto__", "__class__"])
def test_an_unknown_name_is_a_fault_and_is_quoted_short(untouched: Live, name: str) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/predict", {"raw_features": [{**untouched.row, name: 1}]}),
        ("/predict", {"raw_features": [untouched.row], name: 1}),
        ("/labels", {"labels": [{"id": "nobody", "true_label": "a", name: 1}]}),
        ("/labels", {"labels": [{"id": "nobody", "true_label": "a"}], name: 1}),
        ("/admin/retrain", {"force": True, name: 1}),
    ]
    for path, body in bodies:
        response = untouched.client.post(path, content=orjson.dumps(body), headers=HEADERS)
        assert refused(response, 422), (path, len(response.content))
        (fault,) = response.json()["errors"]
        assert fault["feature"] == name[:200]


@pytest.mark.parametrize("text", [*SQLISH, "a\x00b", "²", "１", "0x1", "1e3", "-1", "9" * 400, "é\udcff"])
def test_no_text_in_a_path_or_a_query_reaches_the_database(untouched: Live, text: str) -> None:
    part = quote(text, safe="", errors="surrogateescape")
    for path in (f"/models/{part}", f"/retrain/jobs/{part}"):
        # a slash, even an encoded one, makes it another path
        assert refused(untouched.client.get(path), 404 if "/" in text else 422), path
    for query in (f"limit={part}", f"limit=10&limit={part}"):
        assert refused(untouched.client.get(f"/retrain/jobs?{query}"), 422), query


@pytest.mark.parametrize("text", SQLISH)
def test_a_text_that_looks_like_sql_is_a_text(api: Live, text: str) -> None:
    row = {**api.row, "plan_type": text}
    given = api.predict([row], ids=[text], true_labels=[text])
    assert (given.status_code, given.json()["counted"]) == (200, 1), given.text
    assert api.label({"id": text, "true_label": text[::-1]}).json()["corrected"] == 1
    assert api.label({"id": text + "?", "true_label": text}).json()["unknown"] == [text + "?"]
    (stored,) = api.query("SELECT features ->> 'plan_type' AS plan FROM predictions")
    assert stored["plan"] == text
    assert [row["id"] for row in api.query("SELECT id FROM request_ids")] == [text]
    values = api.query("SELECT value FROM labels ORDER BY superseded_at IS NULL")
    assert [row["value"] for row in values] == [text, text[::-1]]
    try:
        asked = api.client.post("/admin/retrain", json={"reason": text}, headers=ADMIN)
        assert asked.json()["job"]["reason"] == text
    finally:
        api.execute("DELETE FROM retrain_jobs WHERE trigger = 'admin'")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_are_413(untouched: Live, path: str, chunked: bool) -> None:
    content = b'{"reason":"' + b"x" * 10_000_000 + b'"}'
    pieces = (content[n : n + 65536] for n in range(0, len(content), 65536))
    response = untouched.client.post(path, content=pieces if chunked else content, headers=HEADERS)
    assert refused(response, 413)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip", "x" * 1000])
def test_an_encoded_body_is_415(untouched: Live, path: str, coding: str) -> None:
    content = gzip.compress(orjson.dumps({"force": True}))
    response = untouched.client.post(path, content=content, headers={**HEADERS, "Content-Encoding": coding})
    assert refused(response, 415)
    assert "encoded" in response.json()["detail"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data; boundary=x",
        "application/x-ndjson",
        "application/jsonx",
        "*/*",
        "json",
        "é" * 300,
    ],
)
def test_a_body_of_another_kind_is_415(untouched: Live, path: str, kind: str) -> None:
    headers = {**ADMIN, "Content-Type": kind.encode("latin-1")}
    assert refused(untouched.client.post(path, content=b'{"force": true}', headers=headers), 415)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf{}",
        '{"force": true}'.encode("utf-16"),
        b"{} {}",
        b"{'force': True}",
        b'{"force": true,}',
        b"// nothing\n{}",
        b"\x00",
    ],
)
def test_what_is_almost_json_is_400(untouched: Live, path: str, content: bytes) -> None:
    assert refused(untouched.client.post(path, content=content, headers=HEADERS), 400)
    bare = untouched.client.build_request("POST", path, content=content, headers=ADMIN)
    assert "content-type" not in bare.headers  # then it is taken for JSON
    assert refused(untouched.client.send(bare), 400)


@pytest.mark.parametrize("content", [b"", b" \n\t "])
def test_an_empty_body_is_400_where_one_is_needed(untouched: Live, content: bytes) -> None:
    for path in ("/predict", "/labels"):
        assert refused(untouched.client.post(path, content=content, headers=HEADERS), 400)


@pytest.mark.parametrize("content", [b"[]", b"null", b"0", b'"x"', b"true"])
def test_a_body_that_is_no_object_is_422(untouched: Live, content: bytes) -> None:
    for path in PATHS:
        assert refused(untouched.client.post(path, content=content, headers=HEADERS), 422)


def test_of_a_name_that_comes_twice_the_last_value_counts(api: Live) -> None:
    """As every common reader of JSON has it; telling would cost a second reading of each body."""
    row = orjson.dumps({**api.row, "plan_type": "Basic"})[:-1] + b',"plan_type":"Plus"}'
    content = b'{"ids":["first"],"raw_features":[' + row + b'],"ids":["last"]}'
    assert api.client.post("/predict", content=content, headers=HEADERS).status_code == 200
    (stored,) = api.query("SELECT features ->> 'plan_type' AS plan FROM predictions")
    assert stored["plan"] == "Plus"
    assert [row["id"] for row in api.query("SELECT id FROM request_ids")] == ["last"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_another_method_is_405_and_says_which_is_allowed(untouched: Live, path: str, method: str) -> None:
    response = untouched.client.request(method, path, content=b'{"force": true}', headers=HEADERS)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", [*PATHS, "/health", "/models", "/docs"])
@pytest.mark.parametrize("form", ["{}/", "/{}", "{}%00", "{}/..%2f", "{};x=1", "{}%20"])
def test_a_path_that_is_nearly_ours_is_404_and_redirects_nowhere(
    untouched: Live, path: str, form: str
) -> None:
    url = f"{untouched.client.base_url}{form.format(path)}"
    for method in ("GET", "POST"):
        response = untouched.client.request(method, url, content=b'{"force": true}', headers=HEADERS)
        assert refused(response, 404)
