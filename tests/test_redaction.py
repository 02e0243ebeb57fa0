"""What no log line may hold, wherever a line has it; and what is left as it is."""

import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from pipeline.redaction import MASK, REMEMBERED, Redactor
from pipeline.secrets import values_of

KEY = "sk-0a1b2c3d4e5f-" + "AbCdEfGhIjKlMnOpQrStUvWxYz_0123"
TOKEN = "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"

MASKED = [
    (KEY, "sk-***"),
    (f"the key {KEY} is wrong", "the key sk-*** is wrong"),
    ("Authorization: Bearer abcdef.123456==", "Authorization: Bearer ***"),
    ("proxy said Basic dXNlcjpwYXNz to us", "proxy said Basic *** to us"),
    ("POST /v1?api_key=hunter22&n=1", "POST /v1?api_key=***&n=1"),
    ('{"password": "hunter22", "n": 1}', '{"password": "***", "n": 1}'),
    ('"body": "{\\"api_key\\": \\"hunter22\\"}"', '"body": "{\\"api_key\\": \\"***\\"}"'),
    ("OPENAI_API_KEY='hunter22'", "OPENAI_API_KEY='***'"),
    ("redis://user:hunter22@10.0.0.1:6379/0", "redis://***@10.0.0.1:6379/0"),
    ("asked by ann.b+c@mail.example.org today", "asked by ***@*** today"),
    (f"cookie {TOKEN}", "cookie eyJ***"),
    ("hf_" + "a" * 30, "hf_***"),
    ("ghp_" + "a1" * 18, "ghp_***"),
    ("AKIA" + "ABCD" * 4, "AKIA***"),
]

LEFT = [
    "completion_tokens",
    "set `api_key` of `infer=openai`",
    "infer@embed=none",
    "The model `sk-1` does not exist.",
    "all keys of a cache, basically",
    "http://127.0.0.1:8000",
]


@pytest.mark.parametrize(("text", "shown"), MASKED)
def test_keys_passwords_and_addresses_are_masked(text: str, shown: str) -> None:
    assert Redactor().redact(text) == shown


@pytest.mark.parametrize("text", LEFT)
def test_what_only_looks_like_it_is_left(text: str) -> None:
    assert Redactor().redact(text) == text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text,
        lambda text: [text],
        lambda text: {"deep": {"er": (text, 1)}},
        lambda text: ValueError(text),
        lambda text: {text: 1.0},
    ],
)
def test_a_secret_is_found_wherever_a_field_has_it(wrap: Any) -> None:
    event = {"event": "call", "detail": wrap("a configured secret")}
    redactor = Redactor()
    redactor.conceal(["configured secret"])
    redactor.mask(event)
    assert "configured secret" not in str(event)
    assert MASK in str(event)


def test_a_field_with_a_secrets_name_is_masked_whatever_it_holds() -> None:
    event: dict[str, Any] = {"api_key": "short", "password": None, "headers": {"authorization": "x"}, "n": 1}
    Redactor().mask(event)
    assert event == {"api_key": MASK, "password": None, "headers": {"authorization": MASK}, "n": 1}


def test_what_a_caller_logged_is_not_changed_in_its_hands() -> None:
    fields = {"authorization": "x"}
    Redactor().mask({"headers": fields})
    assert fields == {"authorization": "x"}


def test_a_secret_that_json_escapes_is_found_in_json() -> None:
    redactor = Redactor()
    redactor.conceal(['pa"ss\\word', "gehe\u00efm-0"])
    assert redactor.redact('{"p": "pa\\"ss\\\\word", "q": "gehe\\u00efm-0"}') == '{"p": "***", "q": "***"}'


def test_a_secret_that_is_told_later_is_masked_in_what_was_clean_before() -> None:
    redactor = Redactor()
    assert redactor.redact("hunter22") == "hunter22"
    redactor.conceal(["hunter22"])
    assert redactor.redact("hunter22") == MASK


def test_memory_of_clean_texts_is_bounded() -> None:
    redactor = Redactor()
    for n in range(2 * REMEMBERED):
        redactor.mask({f"field{n}": f"text {n}"})
    assert len(redactor._clean) <= REMEMBERED
    assert len(redactor._names) <= REMEMBERED


@given(st.text(), st.text(min_size=6).filter(lambda secret: secret not in MASK), st.text())
def test_no_text_around_a_secret_hides_it(before: str, secret: str, after: str) -> None:
    redactor = Redactor()
    redactor.conceal([secret])
    assert secret not in redactor.redact(before + "|" + secret + "|" + after).replace(MASK, "")


def test_secrets_of_a_configuration_are_found_by_type_and_by_name() -> None:
    class Inner(BaseModel):
        token: str = "one"
        other: str = "public"

    class Config(BaseModel):
        key: SecretStr = SecretStr("two")
        headers: dict[str, SecretStr] = {"x": SecretStr("three")}
        parts: list[Inner] = [Inner()]
        extra: dict[str, str] = {"password": "four", "name": "public"}

    assert sorted(values_of(Config())) == ["four", "one", "three", "two"]


PROGRAM = """
import sys, structlog
from pipeline import logging
from pipeline.config import compose
logging.configure()
compose(["infer=openai", "infer.api_key=a-secret-of-the-configuration", "infer@embed=none"]).plan()
log = structlog.get_logger()
def fails(authorization):
    raise RuntimeError(f"upstream refused {authorization} and a-secret-of-the-configuration")
try:
    fails("Bearer a-secret-of-a-header")
except RuntimeError:
    log.exception("unhandled", api_key="a-secret-of-a-field", who="ann@example.org")
import logging
logging.getLogger("some.library").warning("retrying http://u:a-secret-of-a-url@host/")
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_no_secret_is_in_a_traceback_a_field_or_a_librarys_line(terminal: bool) -> None:
    if terminal:
        reading, writing = pty.openpty()
    else:
        reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=writing) as process:
        os.close(writing)
        said = b""
        while data := _read(reading):
            said += data
        assert process.wait(60) == 0
    os.close(reading)
    assert b"a-secret" not in said
    assert b"ann@" not in said
    assert b"RuntimeError: upstream refused Bearer *** and ***" in said
    assert b"retrying" in said


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the end of a terminal
        return b""
