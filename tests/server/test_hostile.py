"""What attackers and broken clients send: each gets an error in the envelope, never a 500."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.processes import Process, pipeline_server
from pipeline.wire.requests import ChatRequest, CompletionRequest, EmbeddingRequest

HI = b'{"messages":[{"role":"user","content":"hi"}]'
CHAT = b"/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    bounds = ["server.header_timeout=0.6", "server.body_timeout=0.6", "server.max_body_bytes=2000000"]
    with pipeline_server("infer=echo", "infer@embed=echo", "embed.name=e", *bounds) as server:
        yield server
        assert answer(server, post(HI + b"}"))[0] == 200
        assert server.memory() < 200e6


def exchange(server: Process, data: bytes, seconds: float = 5) -> bytes:
    """Send bytes as they are; what comes back until the answer is whole or the line is cut."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as line:
        try:
            line.sendall(data)
            while chunk := line.recv(65536):
                received += chunk
                head, found, body = received.partition(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                if found and length and len(body) >= int(length):
                    break
        except ConnectionError:
            pass
    return received


def answer(server: Process, data: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = exchange(server, data).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def refusal(server: Process, data: bytes) -> tuple[int, dict[str, Any]]:
    status, body = answer(server, data)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return status, body["error"]


def post(body: bytes, path: bytes = CHAT, length: int | None = None, host: bytes = b"localhost") -> bytes:
    return (
        b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (
            path,
            host,
            len(body) if length is None else length,
            body,
        )
    )


def get(path: bytes, headers: bytes = b"host: localhost\r\n", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, path, headers)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        HI + b',"seed":' + b"9" * 5000 + b"}",
        HI + b',"anything":' + b"9" * 5000 + b"}",
        HI + b',"temperature":NaN}',
        HI + b',"temperature":-Infinity}',
        HI + b',"n":1,"n":2}',
        b'{"messages":[{"role":"user","content":"\xff\xfe"}]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b"\xef\xbb\xbf" + HI + b"}",
        HI,
        b"",
        b"[]",
        b"null",
        b"3",
        b'"text"',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_not_a_json_object_is_refused(server: Process, body: bytes) -> None:
    status, error = refusal(server, post(body))
    assert (status, error["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("field", "param"),
    [
        (b'"n":1000000000', "n"),
        (b'"n":true', "n"),
        (b'"n":0', "n"),
        (b'"max_tokens":1000000000000000000', "max_tokens"),
        (b'"max_completion_tokens":-1', "max_completion_tokens"),
        (b'"temperature":"0.5"', "temperature"),
        (b'"temperature":3', "temperature"),
        (b'"temperature":1e999', "temperature"),
        (b'"top_p":2', "top_p"),
        (b'"seed":18446744073709551616', "seed"),
        (b'"presence_penalty":9', "presence_penalty"),
        (b'"logit_bias":{"1":1000}', "logit_bias.1"),
        (b'"logprobs":true,"top_logprobs":1000000000', "top_logprobs"),
        (b'"top_logprobs":2', "top_logprobs"),
        (b'"stop":5', "stop"),
        (b'"stream":"yes"', "stream"),
        (b'"stream_options":{"include_usage":true}', "stream_options"),
        (b'"tool_choice":"required"', "tool_choice"),
        (b'"tools":[{"type":"function"}]', "tools[0]"),
        (b'"response_format":{"type":"xml"}', "response_format.type"),
        (b'"response_format":{"type":"json_schema"}', "response_format"),
        (b'"model":3', "model"),
        (b'"user":{}', "user"),
    ],
)
def test_a_wrong_field_is_refused_by_name(server: Process, field: bytes, param: str) -> None:
    status, error = refusal(server, post(HI + b"," + field + b"}"))
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)


def test_a_list_that_is_too_long_is_told_so_and_not_taken_for_another_type(server: Process) -> None:
    data = json.dumps({"input": ["x"] * 3000}).encode()
    error = refusal(server, post(data, b"/v1/embeddings"))[1]
    assert error["param"] == "input"
    assert "at most 2048" in error["message"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (b"[]", "messages"),
        (b'"hi"', "messages"),
        (b"[5]", "messages[0]"),
        (b'[{"role":"robot","content":"hi"}]', "messages[0].role"),
        (b'[{"role":"user","content":5}]', "messages[0].content"),
        (b'[{"role":"user"}]', "messages[0]"),
        (b'[{"role":"tool","content":"x"}]', "messages[0]"),
        (b'[{"role":"user","content":[{"type":"text"}]}]', "messages[0].content[0]"),
    ],
)
def test_a_wrong_message_is_refused_by_its_place(server: Process, messages: bytes, param: str) -> None:
    assert refusal(server, post(b'{"messages":%b}' % messages))[1]["param"] == param


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (b"/v1/embeddings", b'{"input":[]}'),
        (b"/v1/embeddings", b'{"input":[-1]}'),
        (b"/v1/embeddings", b'{"input":"x","dimensions":1000000000}'),
        (b"/v1/embeddings", b'{"input":"x","encoding_format":"xml"}'),
        (b"/v1/completions", b'{"prompt":[[]]}'),
        (b"/v1/completions", b'{"prompt":{}}'),
        (b"/v1/completions", b"{}"),
        (b"/v1/completions", b'{"prompt":"x","max_completion_tokens":[null]}'),
        (b"/v1/completions", b'{"prompt":"x","response_format":1}'),
    ],
)
def test_the_other_operations_are_checked_too(server: Process, path: bytes, body: bytes) -> None:
    assert refusal(server, post(body, path))[0] == 400


def test_an_unknown_model_is_not_found(server: Process) -> None:
    status, error = refusal(server, post(HI + b',"model":"gpt-9"}'))
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")


def test_unknown_fields_pass(server: Process) -> None:
    assert answer(server, post(HI + b',"of_tomorrow":{"x":[1,2]}}'))[0] == 200


@pytest.mark.parametrize("length", [2_000_001, 100_000_000_000, 10**30])
def test_a_body_declared_too_large_is_refused_unread(server: Process, length: int) -> None:
    # One that is waited for ends in 408.
    assert exchange(server, post(b"{", length=length)).split()[1] in (b"413", b"400")


def test_a_body_too_large_without_a_length_is_refused(server: Process) -> None:
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" % CHAT
    received = exchange(server, head + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 3 + b"0\r\n\r\n")
    assert not received or received.split()[1] == b"413"


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: -1\r\n",
        b"content-length: two\r\n",
        b"content-length: \xc2\xb2\r\n",
        b"content-length: 2\r\ncontent-length: 3\r\n",
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n",
    ],
)
def test_an_ambiguous_length_is_refused(server: Process, headers: bytes) -> None:
    data = b"POST %b HTTP/1.1\r\nhost: localhost\r\n%b\r\n{}" % (CHAT, headers)
    assert refusal(server, data)[0] == 400


@pytest.mark.parametrize("header", [b"content-type: text/plain", b"content-encoding: gzip"])
def test_a_body_that_is_not_plain_json_is_refused(server: Process, header: bytes) -> None:
    data = b"POST %b HTTP/1.1\r\nhost: localhost\r\n%b\r\ncontent-length: 2\r\n\r\n{}" % (CHAT, header)
    assert refusal(server, data)[0] == 415


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", 400),
        (b"host: \r\n", 400),
        (b"host: a/b\r\n", 400),
        (b"host: localhost@evil.example\r\n", 400),
        (b"host: localhost\r\nhost: localhost\r\n", 400),
        (b"host: evil.example\r\n", 403),
        (b"host: evil.example:8000\r\n", 403),
        (b"host: localhost.evil.example\r\n", 403),
    ],
)
def test_a_foreign_host_is_refused(server: Process, headers: bytes, status: int) -> None:
    assert refusal(server, get(b"/v1/models", headers))[0] == status


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:8000", b"[::1]:8000", b"LOCALHOST"])
def test_a_loopback_host_is_served(server: Process, host: bytes) -> None:
    assert answer(server, get(b"/v1/models", b"host: %b\r\n" % host))[0] == 200


@pytest.mark.parametrize(
    "path",
    [b"/", b"/%00", b"/%ff%fe", b"/../../etc/passwd", b"//v1/models", b"/v1/models/", b"/" + b"a" * 60_000],
)
def test_a_path_that_is_not_there_is_not_found(server: Process, path: bytes) -> None:
    assert refusal(server, get(path))[0] == 404


@pytest.mark.parametrize("method", [b"PATCH", b"DELETE", b"OPTIONS"])
def test_a_wrong_method_is_told_which_are_right(server: Process, method: bytes) -> None:
    data = exchange(server, get(b"/v1/models", method=method))
    assert data.split()[1] == b"405"
    assert b"\r\nallow: GET\r\n" in data


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        get(b"/", method=b"BREW"),
        get(b"/\xff\xfe"),
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
    ],
    ids=lambda data: repr(data[:16]),
)
def test_what_is_not_http_is_refused(server: Process, data: bytes) -> None:
    assert refusal(server, data)[0] == 400


def test_headers_too_large_are_refused(server: Process) -> None:
    data = get(b"/v1/models", b"host: localhost\r\nx: " + b"a" * 1_000_000 + b"\r\n")
    assert refusal(server, data)[0] == 431


@pytest.mark.parametrize("start", [b"GET /v1/models HTTP/1.1\r\nhost: loc", post(HI, length=5000)])
def test_a_request_that_does_not_come_to_an_end_is_given_up(server: Process, start: bytes) -> None:
    status, error = refusal(server, start)
    assert (status, error["code"]) == (408, "request_timeout")


def trickle(line: socket.socket) -> None:
    """A header every now and then, for many times the deadline of all of them."""
    for _ in range(400):
        line.sendall(b"a: b\r\n")
        time.sleep(0.05)


def test_trickled_headers_do_not_extend_their_deadline(server: Process) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        line.sendall(b"GET /v1/models HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            trickle(line)


def test_an_upgrade_is_answered_as_plain_http(server: Process) -> None:
    headers = b"host: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n"
    assert answer(server, get(b"/v1/models", headers))[0] == 200


def test_an_upgrade_with_a_body_does_not_smuggle_a_request(server: Process) -> None:
    headers = b"host: localhost\r\nconnection: Upgrade\r\nupgrade: x\r\ncontent-length: 40\r\n"
    assert refusal(server, get(b"/v1/models", headers) + get(b"/health/live"))[0] == 400


def test_trailers_are_dropped(server: Process) -> None:
    headers = b"host: localhost\r\ntransfer-encoding: chunked\r\n"
    start = get(CHAT, headers, b"POST")
    data = start + b"%x\r\n%b\r\n0\r\n" % (len(HI) + 1, HI + b"}") + b"host: elsewhere\r\n\r\n"
    assert answer(server, data)[0] == 200


def test_requests_pipelined_without_end_cost_their_client_the_connection(server: Process) -> None:
    assert exchange(server, get(b"/health/live") * 5000).count(b"HTTP/1.1") < 5000
    assert answer(server, get(b"/health/live"))[0] == 200


def test_pipelined_requests_are_answered_in_order(server: Process) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
        line.sendall(post(HI + b"}") + get(b"/health/live") + get(b"/nope"))
        received = b""
        while received.count(b"HTTP/1.1") < 3 or not received.endswith(b"}"):
            received += line.recv(65536)
    assert [part.split()[0] for part in received.split(b"HTTP/1.1")[1:]] == [b"200", b"200", b"404"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [*ChatRequest.model_fields, *CompletionRequest.model_fields, *EmbeddingRequest.model_fields]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([CHAT, b"/v1/completions", b"/v1/embeddings"]), body=st.dictionaries(FIELDS, JSON)
)
def test_no_json_object_breaks_the_server(server: Process, path: bytes, body: dict[str, Any]) -> None:
    base: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}
    try:
        data = json.dumps({**base, **body}, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    received = exchange(server, post(data, path))
    assert int(received.split()[1]) in (200, 400, 404)
