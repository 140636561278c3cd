"""The access policy with malformed and unusual headers."""

from __future__ import annotations

import hmac

import pytest

from runtime.common.errors import UserError
from runtime.server.auth import make_access_policy
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


def test_two_host_headers_are_rejected() -> None:
    policy = make_access_policy("127.0.0.1", 8080, [], "")
    with pytest.raises(RequestRejected) as rejected:
        policy.check("GET", [(b"host", b"localhost"), (b"Host", b"localhost")])
    assert rejected.value.status == 400


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


def test_a_networked_service_requires_a_token() -> None:
    with pytest.raises(UserError, match="--make-token"):
        make_access_policy("0.0.0.0", 8080, [], "")
