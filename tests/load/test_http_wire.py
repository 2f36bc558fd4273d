"""What a load worker's HTTP connection makes of every way in which an answer can come."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager

import pytest

from perfkit.load.http import HttpSender

GET = {"item": "page", "method": "GET", "path": "/", "json": None, "expect": [200]}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
HUNG_UP = None


@contextmanager
def serving(*connections):
    """A server that answers so: for each connection that comes, its answers one after the other, then it hangs up."""
    requests, listener = [], socket.create_server(("127.0.0.1", 0))

    def serve():
        for answers in connections:
            peer, _ = listener.accept()
            with peer, peer.makefile("rb") as lines:
                for answer in answers:
                    head = b"".join(iter(lines.readline, b"\r\n"))
                    length = next(
                        (int(line[15:]) for line in head.splitlines() if line.startswith(b"Content-Length")), 0
                    )
                    requests.append(head + b"\r\n" + lines.read(length))
                    for part in answer if isinstance(answer, tuple) else (answer,):
                        peer.sendall(part)
                        if len(answer) > 1 and isinstance(answer, tuple):
                            threading.Event().wait(0.02)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        thread.join(5)
        listener.close()


def answers_to(base, *messages, timeout_s=5.0, pause_s=0.0):
    """What a sender makes of these requests, one after the other."""

    async def ask():
        sender, found = HttpSender(base, timeout_s), []
        await sender.open(1)
        for message in messages:
            sender.check(message)
            found.append(await sender.send(message))
            await asyncio.sleep(pause_s)
        await sender.close()
        return found

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, "ab"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n", "ab"),
        ((b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 2\r\n\r\na", b"b"), "ab"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK, "ab"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK), "ab"),
    ],
    ids=["length", "chunked", "in parts", "empty", "early hints", "continue"],
)
def test_an_answer_is_read_whole_and_its_connection_used_again(answer, body):
    with serving([answer, answer]) as (base, requests):
        first, second = answers_to(base, GET, GET)
    assert [first.outcome, second.outcome] == ["ok", "ok"]
    assert [first.body, second.body] == [body, body]
    assert len(requests) == 2


def test_a_packed_body_is_unpacked():
    packed = gzip.compress(b"booked " * 1000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    with serving([head + packed]) as (base, _):
        (answer,) = answers_to(base, {**GET, "contains": ["booked"]})
    assert (answer.outcome, answer.body) == ("ok", "booked " * 1000)


def test_a_large_body_is_read_whole():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n"
    with serving([head + b"x" * 4_999_999 + b"!", OK]) as (base, _):
        first, second = answers_to(base, GET, GET)
    assert (first.outcome, len(first.body), second.body) == ("ok", 65536, "ab")


def test_without_a_length_the_end_of_the_connection_ends_the_body():
    with serving([b"HTTP/1.1 200 OK\r\n\r\nab"], [OK]) as (base, _):
        first, second = answers_to(base, GET, GET)
    assert [(a.outcome, a.body, a.attempts) for a in (first, second)] == [("ok", "ab", 1)] * 2


def test_answers_without_a_body_by_their_kind_are_whole_at_once():
    nothing = b"HTTP/1.1 204 No Content\r\n\r\n"
    described = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"  # of what GET would bring
    with serving([nothing, described, OK]) as (base, _):
        found = answers_to(base, {**GET, "expect": [204]}, {**GET, "method": "HEAD"}, GET)
    assert [(a.outcome, a.body) for a in found] == [("ok", ""), ("ok", ""), ("ok", "ab")]


def test_a_server_that_closes_after_its_answer_gets_a_new_connection():
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab"
    with serving([closing], [closing]) as (base, _):
        found = answers_to(base, GET, GET)
    assert [(a.outcome, a.attempts) for a in found] == [("ok", 1)] * 2


@contextmanager
def closing_on_the_second_request():
    """A server whose first connection ends as the second request on it arrives; others are served."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        peer, _ = listener.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(OK)
            peer.recv(65536)
        listener.settimeout(1)
        try:
            peer, _ = listener.accept()
        except TimeoutError:
            return
        with peer:
            peer.recv(65536)
            peer.sendall(OK)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.join(5)
    listener.close()


def test_a_kept_connection_that_ends_without_a_word_is_replaced_where_that_does_no_harm():
    with closing_on_the_second_request() as base:
        _, answer = answers_to(base, GET, GET)
    assert (answer.outcome, answer.attempts) == ("ok", 2)


def test_what_may_have_changed_something_is_not_sent_again():
    with closing_on_the_second_request() as base:
        _, answer = answers_to(base, GET, {**GET, "method": "POST", "json": {"a": 1}})
    assert (answer.outcome, answer.attempts) == ("reset", 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "closed|cut off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "closed|cut off"),
        (b"220 mail.example ESMTP\r\n", "not HTTP"),
        (b"", "closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope", "cannot be read"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", "not HTTP"),
    ],
    ids=["cut off", "chunk cut off", "another protocol", "nothing", "not packed", "two lengths"],
)
def test_an_answer_that_is_none_is_a_reset_with_the_reason(answer, said):
    with serving([answer]) as (base, _):
        (found,) = answers_to(base, {**GET, "method": "POST"})
    assert found.outcome == "reset"
    assert any(word in found.detail for word in said.split("|")), found.detail


def test_an_answer_that_stops_in_the_middle_is_a_timeout():
    release = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        peer, _ = listener.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
            release.wait(5)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    (found,) = answers_to(f"http://127.0.0.1:{listener.getsockname()[1]}", GET, timeout_s=0.2)
    release.set()
    thread.join(5)
    listener.close()
    assert found.outcome == "timeout"
    assert found.done - found.acquired >= 0.19e9


def test_a_request_carries_what_it_was_given_and_nothing_twice(monkeypatch):
    monkeypatch.setenv("CLINIC_TOKEN", "geheim")
    headers = {"accept": "text/plain", "X-Token": "{env:CLINIC_TOKEN}"}
    post = {**GET, "method": "POST", "path": "/b\u00fcro?q=1%2F2", "json": {"n": "\u00e9"}, "headers": headers}
    with serving([b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ngeheim"]) as (base, requests):
        (answer,) = answers_to(base, post)
    head, _, body = requests[0].partition(b"\r\n\r\n")
    lines = head.decode().splitlines()
    assert lines[0] == "POST /b%C3%BCro?q=1%2F2 HTTP/1.1"
    assert sorted(line.split(":")[0].lower() for line in lines[1:]) == [
        "accept", "accept-encoding", "content-length", "content-type", "host", "user-agent", "x-token",
    ]  # fmt: skip
    assert {"accept: text/plain", "X-Token: geheim", f"Host: {base[7:]}"} <= set(lines)
    assert body == b'{"n": "\\u00e9"}'
    assert answer.body == "***"


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """A certificate for localhost that this process trusts, with its key, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is needed")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost -days 2"
    subprocess.run([*made.split(), "-keyout", file, "-out", f"{file}.crt"], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + file.with_name("both.pem.crt").read_bytes())
    return file


@pytest.mark.system
def test_tls_is_spoken_with_whom_the_certificate_is_for_and_with_nobody_else(certified, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certified))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certified)

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        writer.close()

    async def ask():
        server, found = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context), []
        port = server.sockets[0].getsockname()[1]
        for name in ("localhost", "elsewhere.example"):  # both led to one address
            sender = HttpSender(f"https://{name}:{port}", 5, address="127.0.0.1")
            await sender.open(1)
            sender.check(message := dict(GET))
            found.append(await sender.send(message))
            await sender.close()
        server.close()
        return found

    named, other = asyncio.run(ask())
    assert (named.outcome, named.body) == ("ok", "ab")
    assert other.outcome == "refused" and "elsewhere.example" in other.detail
