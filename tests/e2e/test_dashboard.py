"""The dashboard in a browser: real traffic of a real server, in Debian's Chromium."""

import contextlib
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks.processes import pipeline_server

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package `playwright`")
Page = Any

CHROMIUM = shutil.which("chromium")

ADMIN = "an-administrators-key-for-tests"

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"

WIDTHS = (1440, 768, 390)

LONG = 30_000
"""Milliseconds that a condition may take on a busy machine."""

SHIFTS = """
window.shifted = 0;
window.moved = [];
new PerformanceObserver(list => {
  for (const entry of list.getEntries()) {
    if (entry.hadRecentInput) continue;
    window.shifted += entry.value;
    window.moved.push(...entry.sources.map(one => one.node?.outerHTML?.slice(0, 120)));
  }
}).observe({type: "layout-shift", buffered: true});
"""


@dataclass
class Gateway:
    """A server with some calls, and what it said of them."""

    url: str
    calls: dict[str, str] = field(default_factory=dict)

    def send(self, name: str, text: str, model: str = "default", key: str = ADMIN, **more: Any) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}
        self.post("/v1/chat/completions", body, key, name)

    def post(self, path: str, body: dict[str, Any], key: str = ADMIN, name: str = "") -> Any:
        head = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), head)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                self.calls[name] = answer.headers["x-request-id"]
                text = answer.read()
                return None if body.get("stream") else json.loads(text)
        except urllib.error.HTTPError as error:
            with error:
                self.calls[name] = error.headers["x-request-id"]
        return None


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    if CHROMIUM is None:
        pytest.skip("needs `chromium` (Debian's package `chromium`) on the PATH")
    given = ["graph=pair", "infer@small=echo", "infer@large=echo", "infer@embed=none", "monitor=none"]
    given += [
        "small.name=small",
        "large.name=large",
        "large.latency=0.05",
        "route=ab",
        "route.experiment=size",
    ]
    given += ["small.failure_rate=0.2", "validate=regex", "validate.forbid=[forbidden]", "keys=sqlite"]
    given += ["ledger=sqlite", "dashboard.interval=0.5", "+price.models.large={prompt: 100, completion: 400}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ADMIN_KEY", ADMIN)
        with pipeline_server(*given, f"vars.state={tmp_path_factory.mktemp('state')}") as server:
            gateway = Gateway(server.url)
            owner = gateway.post("/v1/admin/keys", {"name": "n", "owner": HOSTILE})["value"]
            for n in range(12):
                gateway.send("plain", f"question {n}", model="large")
                gateway.send("shared", f"question {n}", key=owner, user=f"user {n}")
            gateway.send("streamed", "a long answer in many words", model="large", stream=True)
            gateway.send("cached", "question 1", model="large")
            gateway.send("hostile", HOSTILE, model=HOSTILE)
            gateway.send("refused", "this is forbidden", model="large")
            gateway.post("/v1/feedback", {"id": gateway.calls["plain"], "rating": "up", "comment": HOSTILE})
            yield gateway


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs `chromium` (Debian's package `chromium`) on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def session(gateway: Gateway, browser: Any) -> Any:
    """The cookies of one login by the form."""
    with contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(f"{gateway.url}/dashboard")
        page.get_by_label("Admin key").fill("not-the-administrators-key")
        page.keyboard.press("Enter")
        sync_api.expect(page.get_by_role("alert")).to_contain_text("not the administrator's key")
        page.get_by_label("Admin key").fill(ADMIN)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"{gateway.url}/dashboard")
        return context.storage_state()


@pytest.fixture
def trouble() -> list[str]:
    """What went wrong in pages: errors, dialogs, requests to elsewhere."""
    return []


@pytest.fixture
def page(gateway: Gateway, browser: Any, session: Any, trouble: list[str]) -> Iterator[Any]:
    with contextlib.closing(browser.new_context(storage_state=session)) as context:
        context.set_default_timeout(LONG)
        page = context.new_page()
        page.add_init_script(SHIFTS)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on(
            "console", lambda said: trouble.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("dialog", lambda dialog: (trouble.append("dialog"), dialog.dismiss()))
        page.on(
            "request", lambda asked: None if asked.url.startswith(gateway.url) else trouble.append(asked.url)
        )
        yield page
        assert trouble == []


def opened(page: Page, gateway: Gateway, query: str = "?range=15m") -> None:
    page.goto(f"{gateway.url}/dashboard{query}")
    sync_api.expect(page.locator("#status")).to_have_text("Live", timeout=LONG)
    sync_api.expect(page.locator("#calls tbody tr").first).to_be_visible(timeout=LONG)


def figure(page: Page, label: str) -> str:
    return str(page.locator(f"#headline div:has(dt:text-is('{label}')) .figure").inner_text())


def test_figures_are_those_of_the_traffic(page: Page, gateway: Gateway) -> None:
    opened(page, gateway)
    assert figure(page, "Calls") == "28"
    assert page.locator("#traffic li:has-text('From cache') .value").inner_text() == "1"
    assert page.locator("#errors").inner_text().count("validation_failed") == 1
    assert page.locator("#models").get_by_text("large").count() >= 1
    assert page.locator("#graph svg .stage").count() == 6
    assert "$" in figure(page, "Cost")
    assert page.locator("#quality").get_by_text("100").count() >= 1
    assert page.locator("#experiments tbody tr").count() == 2
    sync_api.expect(page.locator("#panels h2")).to_have_text("Experiment size, all calls kept")


def test_a_call_that_is_made_appears_without_a_reload(page: Page, gateway: Gateway) -> None:
    opened(page, gateway)
    before = int(figure(page, "Calls"))
    gateway.send("new", f"asked after {before}", model="large")
    figure_place = page.locator("#headline .figure").first
    sync_api.expect(figure_place).to_have_text(str(before + 1), timeout=LONG)


def test_names_that_clients_choose_are_text(page: Page, gateway: Gateway) -> None:
    opened(page, gateway, "?range=15m&listing=failed")
    sync_api.expect(page.locator("#calls").get_by_text(HOSTILE).first).to_be_visible()
    assert page.locator("#keys").get_by_text(HOSTILE).count() == 1
    for name in ("hostile", "plain"):
        page.goto(f"{gateway.url}/dashboard?call={gateway.calls[name]}")
        sync_api.expect(page.locator("#call .facts")).to_contain_text("<img src=x")
    assert page.locator("img, main script").count() == 0


def test_a_call_leads_to_its_path_and_back(page: Page, gateway: Gateway) -> None:
    opened(page, gateway, "?range=15m&listing=failed")
    page.locator(f"#calls a[href*='{gateway.calls['refused']}']").click()
    sync_api.expect(page.locator("#call .lead")).to_contain_text("400 validation_failed")
    assert page.locator("#call .stage.raised").count() >= 1
    assert f"call={gateway.calls['refused']}" in page.url
    page.keyboard.press("Escape")
    sync_api.expect(page.locator("#call")).to_be_hidden()
    sync_api.expect(page).not_to_have_url(re.compile("call="))
    page.go_back()
    sync_api.expect(page.locator("#call .lead")).to_contain_text("400 validation_failed")


def test_the_address_says_what_is_shown(page: Page, gateway: Gateway) -> None:
    opened(page, gateway, "?range=7d&listing=recent&theme=dark")
    assert page.get_by_label("7 d").is_checked()
    assert page.get_by_label("Recent").is_checked()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.locator("label[for='range-30d']").click()
    page.wait_for_url("**range=30d**")
    page.go_back()
    sync_api.expect(page.get_by_label("7 d")).to_be_checked()


def test_the_keyboard_reaches_everything(page: Page, gateway: Gateway) -> None:
    opened(page, gateway)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_label("15 min").focus()
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.get_by_label("1 h", exact=True)).to_be_checked()
    chart = page.locator("#traffic .canvas")
    chart.focus()
    page.keyboard.press("End")
    said = chart.get_attribute("aria-label")
    page.keyboard.press("ArrowLeft")
    assert chart.get_attribute("aria-label") != said
    page.locator("#calls a").first.focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#call .facts")).to_be_visible()
    assert page.evaluate("document.querySelector('#call').contains(document.activeElement)")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_and_nothing_jumps(page: Page, gateway: Gateway, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    opened(page, gateway)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("label[for='range-24h']").click()
    sync_api.expect(page.locator("body")).to_have_attribute("data-busy", "")
    page.wait_for_function(
        "document.querySelector('#range-24h').checked && document.body.dataset.busy === ''"
    )
    # What browsers call good: https://web.dev/articles/cls
    assert page.evaluate("window.shifted") < 0.1, page.evaluate("window.moved")


def test_a_page_whose_session_has_ended_goes_to_the_form(page: Page, gateway: Gateway) -> None:
    opened(page, gateway)
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/dashboard/login")
    page.goto(f"{gateway.url}/dashboard?range=7d")
    page.wait_for_url("**/dashboard/login")
