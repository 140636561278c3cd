"""The access policy with malformed and unusual headers."""

from __future__ import annotations

import argparse
import hmac
import socket
from contextlib import nullcontext

import pytest

from runtime.common.errors import UserError
from runtime.server.auth import host_name, make_access_policy
from runtime.server.errors import RequestRejected

TOKEN = "t0ken-of-the-test"


@pytest.mark.parametrize(
    "origin", ["http://[", "http://[]:8080", "http://[::1", "null", "", "//localhost:8080"]
)
def test_a_malformed_origin_counts_as_another_site(origin: str) -> None:
    """Found by tests/fuzz: urlsplit raised ValueError, and the service answered 500."""
    policy = make_access_policy("127.0.0.1", 8080, [], "")
    with pytest.raises(RequestRejected) as rejected:
        policy.check("POST", [(b"host", b"localhost:8080"), (b"origin", origin.encode())])
    assert rejected.value.status == 403
    policy.check("POST", [(b"host", b"localhost:8080"), (b"origin", b"http://LOCALHOST:8080")])


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://pi.example", "pi.example:80", True),
        ("http://pi.example:80", "pi.example", True),
        ("https://pi.example", "pi.example:443", True),
        ("https://pi.example:443", "pi.example", True),
        ("http://pi.example.:8080", "pi.example:8080", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("https://pi.example", "pi.example:80", False),
        ("http://pi.example", "pi.example:8080", False),
        ("http://pi.example:8081", "pi.example:8080", False),
        ("http://evil.example", "pi.example", False),
    ],
)
def test_an_origin_is_compared_with_its_default_port(origin: str, host: str, same: bool) -> None:
    policy = make_access_policy("127.0.0.1", 8080, ["pi.example"], "")
    with nullcontext() if same else pytest.raises(RequestRejected, match="another site"):
        policy.check("POST", [(b"host", host.encode()), (b"origin", origin.encode())])


def test_a_request_without_a_host_header_is_accepted_if_no_page_sent_it() -> None:
    """HTTP/1.0 has no Host header; DNS rebinding needs a browser, which always sends it."""
    policy = make_access_policy("127.0.0.1", 8080, [], "")
    assert policy.check("POST", [])
    for origin in (b"http://localhost", b"null"):
        with pytest.raises(RequestRejected, match="another site"):
            policy.check("POST", [(b"origin", origin)])


def test_an_unknown_host_is_named_as_the_flag_takes_it() -> None:
    policy = make_access_policy("127.0.0.1", 8080, [], "")
    with pytest.raises(RequestRejected, match=r"^'pi\.example' is not") as rejected:
        policy.check("GET", [(b"host", b"pi.example:8080")])
    assert rejected.value.status == 421


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Pi.example.org.", "pi.example.org"),
        ("pi.example.org:8080", "pi.example.org:8080"),
        ("münchen.example:80", "xn--mnchen-3ya.example:80"),
        ("192.0.2.7", "192.0.2.7:8080"),
        ("2001:DB8::1", "[2001:db8::1]:8080"),
        ("[2001:db8::1]:80", "[2001:db8::1]"),
    ],
)
def test_an_allowed_host_is_accepted_as_a_browser_sends_it(text: str, host: str) -> None:
    assert make_access_policy("127.0.0.1", 8080, [host_name(text)], "").accepts_host(host)


@pytest.mark.parametrize("text", ["", ".", "*", "*.example.org", "http://pi", "a b", "pi/", "pi:x", "a..b"])
def test_a_value_that_no_browser_sends_as_host_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"such as pi\.example\.org"):
        host_name(text)


def test_two_host_headers_are_rejected() -> None:
    policy = make_access_policy("127.0.0.1", 8080, [], "")
    with pytest.raises(RequestRejected) as rejected:
        policy.check("GET", [(b"host", b"localhost"), (b"Host", b"localhost")])
    assert rejected.value.status == 400
    assert policy.check("GET", [(b"host", b"localhost"), (b"accept", b"a"), (b"accept", b"b")])


@pytest.mark.parametrize(
    "cookies", ['prefs={"a":1}; {}', "flag; {}", "{}; a=b=c", "=; {};", "vgg_edge_8080=old; {}"]
)
def test_the_cookie_is_found_among_malformed_cookies(cookies: str) -> None:
    policy = make_access_policy("127.0.0.1", 8080, [], TOKEN)
    cookie = policy.set_cookie_header.partition(";")[0]
    assert policy.is_authorized({"cookie": cookies.replace("{}", cookie)})
    assert not policy.is_authorized({"cookie": cookies.replace("{}", f"x{cookie}")})
    assert not policy.is_authorized({"cookie": cookies.replace("{}", cookie[:-1])})


def test_thousands_of_cookies_cost_one_hmac(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the token, a client can send 64 kB of them, and the event loop checks them."""
    computed = []
    new = hmac.new

    def count(key: bytes, message: bytes, digest: str) -> hmac.HMAC:
        computed.append(message)
        return new(key, message, digest)

    monkeypatch.setattr(hmac, "new", count)
    policy = make_access_policy("127.0.0.1", 8080, [], TOKEN)
    for value in ("", "0" * 64):
        cookies = f"vgg_edge_8080={value};" * (65_000 // (len(value) + 15))
        assert not policy.is_authorized({"cookie": cookies})
    assert len(computed) == 1


def test_a_networked_service_accepts_every_ip_address_and_its_own_names() -> None:
    policy = make_access_policy("0.0.0.0", 8080, ["pi.example.org"], TOKEN)
    for host in ("192.0.2.7:8080", "[2001:db8::1]:8080", "PI.example.org:8080"):
        assert policy.accepts_host(host)
    assert not make_access_policy("127.0.0.1", 8080, [], "").accepts_host("192.0.2.7:8080")
    assert TOKEN not in repr(policy)


@pytest.mark.parametrize("hostname", ["pi", "PI"])
def test_a_networked_service_accepts_the_name_of_its_machine_alone_and_with_local(
    hostname: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: hostname)
    policy = make_access_policy("0.0.0.0", 8080, [], TOKEN)
    for host in ("pi", "pi.local", "PI.local:8080", "pi.local."):
        assert policy.accepts_host(host)
    for host in ("pi.localhost", "pi.local.example", "other.local", "local"):
        assert not policy.accepts_host(host)
    assert not make_access_policy("127.0.0.1", 8080, [], "").accepts_host("pi.local")


def test_a_networked_service_requires_a_token() -> None:
    with pytest.raises(UserError, match="--make-token"):
        make_access_policy("0.0.0.0", 8080, [], "")
