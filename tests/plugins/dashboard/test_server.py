"""The dashboard of a real server: who is let in, what it tells, and how its streams end."""

import contextlib
import http.client
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from benchmarks.processes import Process, pipeline_server
from pipeline.cli.app import run

ADMIN = "an-administrators-key-for-tests"

ECHO = ("infer=echo", "infer@embed=none", "monitor=none", "dashboard.interval=0.2")


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Browser:
    """What speaks to a server as a browser would, with the cookies it was given."""

    port: int
    cookie: str = ""
    streams: list[http.client.HTTPConnection] = field(default_factory=list)

    def open(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.streams.append(connection)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            sent["cookie"] = self.cookie
        connection.request(method, path, body, sent)
        return connection.getresponse()

    def get(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Answer:
        answer = self.open(path, method, body, **headers)
        found = Answer(answer.status, answer.headers, answer.read())
        self.streams.pop().close()
        if given := answer.headers.get("set-cookie"):
            self.cookie = given.partition(";")[0]
        return found

    def log_in(self, key: str, **headers: str) -> Answer:
        form = {"content_type": "application/x-www-form-urlencoded", "sec_fetch_site": "same-origin"}
        return self.get("/dashboard/login", "POST", urlencode({"key": key}), **{**form, **headers})

    def chat(self, text: str, key: str | None = None) -> str:
        body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": text}]})
        sent = {"authorization": f"Bearer {key}"} if key else {}
        answer = self.get("/v1/chat/completions", "POST", body, content_type="application/json", **sent)
        assert answer.status == 200, answer.body
        return answer.headers["x-request-id"]

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


def wait(until: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def serving(folder: Path, *overrides: str) -> Iterator[tuple[Process, Browser]]:
    with pipeline_server(*ECHO, f"vars.state={folder}", *overrides) as server:
        browser = Browser(server.port)
        try:
            yield server, browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """A server without keys, on loopback."""
    with serving(folder, "ledger=sqlite", "dashboard.streams=3") as (server, _):
        yield server.port


@pytest.fixture
def browser(port: int) -> Iterator[Browser]:
    with contextlib.closing(Browser(port)) as browser:
        yield browser


@pytest.fixture(scope="module")
def guarded_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server that asks for keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ADMIN_KEY", ADMIN)
        folder = tmp_path_factory.mktemp("guarded")
        with serving(folder, "keys=sqlite", "ledger=sqlite", "dashboard.attempts=3") as (server, _):
            yield server.port


@pytest.fixture
def guarded(guarded_port: int) -> Iterator[Browser]:
    with contextlib.closing(Browser(guarded_port)) as browser:
        yield browser


def test_on_loopback_without_keys_nobody_logs_in(browser: Browser, folder: Path) -> None:
    page = browser.get("/dashboard")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert browser.get("/dashboard/api/about").json["login"] is False
    there = browser.get("/dashboard/login")
    assert (there.status, there.headers["location"]) == (303, "../dashboard")
    assert browser.get("/dashboard/").headers["location"] == "../dashboard"
    assert not (folder / "dashboard.key").exists()


def test_figures_and_lists_have_the_calls_that_were_made(browser: Browser) -> None:
    id = browser.chat("one two three")

    def listed() -> Any:
        calls = browser.get("/dashboard/api/calls?range=15m&listing=recent").json["calls"]
        return next((call for call in calls if call["id"] == id), None)

    assert wait(listed)["completion_tokens"] == 3
    assert browser.get("/dashboard/api/figures?range=15m").json["totals"]["calls"] >= 1
    call = browser.get(f"/dashboard/api/calls/{id}").json
    assert [step["to"] for step in call["path"]][-1] == "infer"
    about = browser.get("/dashboard/api/about").json
    assert {step["to"] for step in call["path"]} <= {stage["name"] for stage in about["stages"]}
    assert browser.get("/dashboard/api/calls/req_none").status == 404


@pytest.mark.parametrize(
    "path",
    [
        "figures?range=1y",
        "figures?rang=1h",
        "calls?listing=all",
        "calls?range=1h&listing=slowest&x=1",
        f"figures?range=1h&{'&'.join(f'a{i}=1' for i in range(9))}",
    ],
)
def test_what_no_page_asks_for_is_refused(browser: Browser, path: str) -> None:
    assert browser.get(f"/dashboard/api/{path}").status == 400


@pytest.mark.parametrize("path", ["", "/login", "/api/about", "/static/app.js", "/api/calls/req_none"])
def test_every_answer_forbids_what_the_page_does_not_need(guarded: Browser, path: str) -> None:
    headers = guarded.get(f"/dashboard{path}").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == (
        "'none'",
        "'self'",
        "'self'",
    )
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"


def test_no_file_of_the_page_names_another_place_or_makes_markup_of_text() -> None:
    static = Path(str(files("pipeline_plugins.dashboard"))) / "static"
    own = [path for path in static.rglob("*") if path.suffix in (".js", ".css", ".html")]
    assert len(own) > 20
    for path in own:
        text = path.read_text()
        assert re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text) is None, (
            path
        )
        if path.parent.name != "vendor":
            assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}, path
            assert re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", text) is None, path
    assert (static / "vendor" / "uPlot.LICENSE").exists()


def test_files_are_sent_once_and_compressed(browser: Browser) -> None:
    first = browser.get("/dashboard/static/vendor/uPlot.esm.js", accept_encoding="gzip")
    assert (first.status, first.headers["content-encoding"]) == (200, "gzip")
    assert len(first.body) < 60_000
    again = browser.get("/dashboard/static/vendor/uPlot.esm.js", if_none_match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("path", ["../web.py", "..%2fweb.py", "vendor", "", "sections/../../web.py"])
def test_only_the_pages_files_are_sent(browser: Browser, path: str) -> None:
    assert browser.get(f"/dashboard/static/{path}").status == 404


def test_pages_of_other_sites_get_nothing(browser: Browser, guarded: Browser) -> None:
    for one in (browser, guarded):
        for path in ("api/about", "api/figures", "events", "api/calls/x"):
            assert one.get(f"/dashboard/{path}", sec_fetch_site="cross-site").status == 403
    assert guarded.log_in(ADMIN, sec_fetch_site="cross-site").status == 403
    refused = guarded.get("/dashboard/login", "POST", "key=x", origin="https://evil.example")
    assert refused.status == 403
    assert guarded.get("/dashboard/logout", "POST", sec_fetch_site="same-site").status == 403


def test_without_a_session_there_is_the_form_and_no_figure(guarded: Browser) -> None:
    there = guarded.get("/dashboard")
    assert (there.status, there.headers["location"]) == (303, "dashboard/login")
    assert b'name="key"' in guarded.get("/dashboard/login").body
    for path in ("api/about", "api/figures", "api/calls", "api/calls/x", "events"):
        assert guarded.get(f"/dashboard/{path}").status == 401
    guarded.cookie = "pipeline_dashboard=ffffffff.x.y"
    assert guarded.get("/dashboard/api/about").status == 401


def test_an_administrator_logs_in_and_out(guarded: Browser) -> None:
    there = guarded.log_in(ADMIN)
    assert (there.status, there.headers["location"]) == (303, "../dashboard")
    cookie = there.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie
    assert ADMIN not in cookie
    assert guarded.get("/dashboard").status == 200
    assert guarded.get("/dashboard/api/figures").status == 200
    out = guarded.get("/dashboard/logout", "POST", sec_fetch_site="same-origin")
    assert "Max-Age=0" in out.headers["set-cookie"]
    assert guarded.get("/dashboard").status == 303


def test_behind_tls_the_cookie_is_for_tls_alone(guarded: Browser) -> None:
    assert "; Secure" in guarded.log_in(ADMIN, origin="https://gateway.example").headers["set-cookie"]


def test_scripts_send_the_key_itself(guarded: Browser) -> None:
    assert guarded.get("/dashboard/api/figures", authorization=f"Bearer {ADMIN}").status == 200
    assert guarded.get("/dashboard/api/figures", authorization="Bearer wrong").status == 401


def test_a_key_that_is_no_administrators_opens_nothing(guarded: Browser) -> None:
    made = guarded.get(
        "/v1/admin/keys",
        "POST",
        json.dumps({"name": "n", "owner": "alice"}),
        content_type="application/json",
        authorization=f"Bearer {ADMIN}",
    )
    held = made.json["value"]
    refused = guarded.log_in(held)
    assert (refused.status, guarded.cookie) == (401, "")
    assert guarded.get("/dashboard/api/figures", authorization=f"Bearer {held}").status == 403


def test_wrong_keys_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ADMIN_KEY", ADMIN)
    with serving(tmp_path, "keys=sqlite", "dashboard.attempts=2") as (_, browser):
        refused = [browser.log_in("wrong-key-of-some-length") for _ in range(3)]
        assert [answer.status for answer in refused] == [401, 401, 429]
        assert int(refused[-1].headers["retry-after"]) <= 61
        assert browser.log_in(ADMIN).status == 429
        assert browser.get("/dashboard/api/about", authorization=f"Bearer {ADMIN}").status == 200


@pytest.mark.parametrize(
    ("form", "status"),
    [("&".join("abcdefgh"), 400), ("key=%ff%00", 401), ("", 401), ("key=" + "x" * 9000, 413)],
)
def test_a_form_that_no_browser_sends_is_refused(guarded: Browser, form: str, status: int) -> None:
    assert guarded.get("/dashboard/login", "POST", form, sec_fetch_site="same-origin").status == status
    guarded.log_in(ADMIN)  # the right key makes the wrong ones forgotten


def test_a_session_outlives_a_restart_and_holds_for_every_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_ADMIN_KEY", ADMIN)
    with serving(tmp_path, "keys=sqlite") as (_, browser):
        browser.log_in(ADMIN)
        cookie = browser.cookie
    with serving(tmp_path, "keys=sqlite", "server.workers=2") as (_, browser):
        browser.cookie = cookie
        assert {browser.get("/dashboard/api/about").status for _ in range(8)} == {200}


def event(stream: http.client.HTTPResponse) -> tuple[str, Any]:
    """The next event's name and data."""
    name = ""
    while line := stream.readline().decode():
        kind, _, value = line.rstrip("\n").partition(": ")
        if kind == "event":
            name = value
        elif kind == "data":
            return name, json.loads(value)
    raise EOFError


def test_events_tell_of_calls_as_they_end(browser: Browser) -> None:
    stream = browser.open("/dashboard/events")
    assert stream.headers["content-type"] == "text/event-stream"
    name, before = event(stream)
    assert name == "now"
    browser.chat("live")
    told = wait(lambda: next((d for _, d in [event(stream)] if d["revision"] > before["revision"]), None))
    assert sum(calls for _, calls, _, _ in told["seconds"]) >= 1
    assert any(gauge["name"] == "pipeline_dashboard_streams" for gauge in told["gauges"])


def streams(browser: Browser) -> float:
    text = browser.get("/metrics").body.decode()
    return float(re.search(r"^pipeline_dashboard_streams (\S+)", text, re.M)[1])  # type: ignore[index]


def test_streams_are_bounded_and_given_back_when_a_page_leaves(browser: Browser) -> None:
    wait(lambda: streams(browser) == 0)
    held = [browser.open("/dashboard/events") for _ in range(3)]
    for one in held:
        event(one)
    assert browser.get("/dashboard/events").status == 503
    browser.close()
    wait(lambda: streams(browser) == 0)
    assert event(browser.open("/dashboard/events"))[0] == "now"


def ends(stream: http.client.HTTPResponse) -> bool:
    with contextlib.suppress(EOFError, http.client.HTTPException, ConnectionError, socket.timeout):
        while True:
            event(stream)
    return True


def test_a_server_that_stops_ends_its_streams_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, "ledger=sqlite", "server.drain_timeout=60") as (server, browser):
        stream = browser.open("/dashboard/events")
        event(stream)
        server.process.send_signal(signal.SIGTERM)
        assert ends(stream)
        server.process.wait(30)


def test_a_reload_ends_streams_so_that_the_former_graph_can_go(tmp_path: Path) -> None:
    with serving(tmp_path, "ledger=sqlite") as (server, browser):
        stream = browser.open("/dashboard/events")
        event(stream)
        server.process.send_signal(signal.SIGHUP)
        assert ends(stream)
        assert event(browser.open("/dashboard/events"))[0] == "now"


def test_an_experiment_is_compared_on_the_dashboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = ["graph=pair", "infer@small=echo", "infer@large=echo", "small.name=small", "large.name=large"]
    given = (*graph, "route=ab", "route.experiment=size", "ledger=sqlite", "cache=none", "ledger.flush=0.05")
    with serving(tmp_path, *given) as (_, browser):
        for n in range(12):
            body = {"model": "default", "user": f"user {n}", "messages": [{"role": "user", "content": "hi"}]}
            sent = browser.get(
                "/v1/chat/completions", "POST", json.dumps(body), content_type="application/json"
            )
            assert sent.status == 200, sent.body

        def compared() -> Any:
            (panel,) = browser.get("/dashboard/api/panels").json
            return panel if panel["rows"] else None

        panel = wait(compared)
        assert run(["ab", "status", *ECHO, *given, f"vars.state={tmp_path}", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    decided = {tuple(row[:3]) for row in panel["rows"]}
    assert decided == {
        (metric["metric"], row["variant"], row["decision"])
        for metric in report["metrics"]
        for row in metric["variants"]
    }
    assert sum(one["calls"] for one in report["variants"]) == 12
    for one in report["variants"]:
        assert f"{one['calls']} calls of {one['units']} units by {one['variant']}" in panel["note"]


def test_without_a_ledger_the_page_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, "ledger=none") as (_, browser):
        assert browser.get("/dashboard").status == 200
        assert browser.get("/dashboard/api/about").json["ledger"] is False
        refused = browser.get("/dashboard/api/figures")
        assert (refused.status, refused.json["error"]["code"]) == (404, "no_ledger")
        assert "seconds" not in event(browser.open("/dashboard/events"))[1]


def test_the_dashboard_can_be_left_out(tmp_path: Path) -> None:
    with serving(tmp_path, "dashboard=none") as (_, browser):
        assert browser.get("/dashboard").status == 404


def test_a_damaged_ledger_is_told_and_calls_go_on(tmp_path: Path) -> None:
    with serving(tmp_path, "ledger=sqlite") as (_, browser):
        browser.chat("before")
        wait(lambda: browser.get("/dashboard/api/figures").json["totals"]["calls"])
        for path in tmp_path.glob("ledger.sqlite*"):
            path.write_bytes(b"no database" * 1000)
        assert browser.get("/dashboard/api/figures?range=7d").json["error"]["code"] == "ledger_unavailable"
        assert event(browser.open("/dashboard/events"))[0] == "trouble"
        browser.chat("after")
