"""Each path of the table: as a function, in a request's head, as a route, and at the upstream."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.engine.engine import TRANSPORT_PLAIN
from dataplane.engine.parser import RefusedError, Verdict, normalise_path, parse_request
from dataplane.image.values import Unfit, path_pattern
from tests.conformance.paths import REFUSED, TAKEN
from tests.support.engine import Proxy, app, route
from tests.support.upstream import Upstream

ALL = [*((given, section) for given, _, section in TAKEN), *REFUSED]


def request(path: bytes) -> bytes:
    return b"GET " + path + b"?%2e/../%41 HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize(("path", "form", "section"), TAKEN)
def test_path_has_one_form(path: bytes, form: bytes, section: str) -> None:
    assert normalise_path(path) == form, section
    assert normalise_path(form) == form, "the form is its own form"
    head = parse_request(request(path))
    assert (head.path, head.query) == (form, b"?%2e/../%41"), section
    assert head.target == path + b"?%2e/../%41", "the target stays as it came"


@pytest.mark.parametrize(("path", "section"), REFUSED)
def test_path_that_readers_differ_on_is_refused(path: bytes, section: str) -> None:
    for judge in (lambda: normalise_path(path), lambda: parse_request(request(path))):
        with pytest.raises(RefusedError) as refusal:
            judge()
        assert refusal.value.verdict is Verdict.MALFORMED, section


@given(text=st.text(alphabet="/.%2eEfF5cC;a0", max_size=24))
def test_form_is_stable_and_holds_no_way_up_for_any_reader(text: str) -> None:
    """What is taken has one form, from which no further decoding or cutting leads up."""
    try:
        form = normalise_path(b"/" + text.encode())
    except RefusedError:
        return
    assert normalise_path(form) == form
    for piece in re.split(rb"/|%2F|%5C", form):
        assert re.split(rb";|%3B", piece)[0] not in (b".", b"..")
    assert not re.search(rb"%[0-9A-F]?[a-f]", re.sub(rb"%25..", b"", form))


@pytest.mark.parametrize(("path", "section"), ALL)
def test_config_agrees_with_the_engine_on_a_path_to_match(path: bytes, section: str) -> None:
    """What a config file may name has the engine's form; it may name less than requests may."""
    try:
        named = path_pattern(path.decode("latin-1"))
    except Unfit:
        return
    assert named.encode() == normalise_path(path), section


@contextlib.contextmanager
def serving(*paths: str) -> Iterator[tuple[Proxy, Upstream]]:
    with Upstream() as upstream:
        routes = [route(path, respond=(200, f"route {path}\n")) for path in paths]
        with Proxy(
            app([upstream.port], routes=[*routes, route()]), transport=TRANSPORT_PLAIN
        ) as on:
            yield on, upstream


def test_what_the_upstream_gets_is_the_form() -> None:
    with serving() as (proxy, upstream), proxy.client() as client:
        for path, form, _ in TAKEN:
            client.send(request(path))
            client.answer()
            assert upstream.next().line.encode() == b"GET " + form + b"?%2e/../%41 HTTP/1.1"


def test_no_other_spelling_gets_past_a_route() -> None:
    spellings = ["/admin/x", "/%61dmin/x", "/./admin/x", "/a/../admin/x", "/a/%2e%2e/admin/x",
                 "/admin/./x", "/%61%64%6d%69%6E/x", "/x/y/.%2e/../admin/y/%2E%2e/x"]  # fmt: skip
    with serving("/admin/") as (proxy, _), proxy.client() as client:
        for spelling in spellings:
            assert client.get(spelling).body == b"route /admin/\n", spelling


def test_an_encoded_slash_is_no_slash_to_a_route() -> None:
    with serving("/a/b", "/a%2fb") as (proxy, upstream), proxy.client() as client:
        assert client.get("/a/b").body == b"route /a/b\n"
        assert client.get("/a%2Fb").body == client.get("/a%2fb").body == b"route /a%2fb\n"
        assert client.get("/a%2fb/").status == 200
        assert upstream.next().line == "GET /a%2Fb/ HTTP/1.1"


def test_refused_paths_reach_nobody() -> None:
    with serving("/own/") as (proxy, upstream):
        for path, _ in REFUSED:
            with proxy.client() as client:
                client.send(request(path))
                answer = client.answer()
                assert (answer.status, answer.get("connection")) == (400, "close")
        assert upstream.accepted == 0
