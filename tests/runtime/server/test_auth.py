"""Who is let in: a request whose head is not one is refused like any other."""

from __future__ import annotations

import pytest

from runtime.server.auth import RequestRejected, open_door


@pytest.mark.parametrize(
    "origin", ["http://[", "http://[]:8080", "http://[::1", "null", "", "//localhost:8080"]
)
def test_an_origin_that_is_none_is_another_page(origin: str) -> None:
    """Found by tests/fuzz: urlsplit raised ValueError, and the service answered 500."""
    door = open_door("127.0.0.1", 8080, [], "")
    head = [(b"host", b"localhost:8080"), (b"origin", origin.encode())]
    with pytest.raises(RequestRejected, match="comes from another page"):
        door.check("POST", head)
    door.check("POST", [(b"host", b"localhost:8080"), (b"origin", b"http://LOCALHOST:8080")])


@pytest.mark.parametrize(
    "others", ['prefs={"a":1}; {}', "flag; {}", "{}; a=b=c", "=; {};", "vgg_edge_8080=old; {}"]
)
def test_the_cookie_is_found_among_those_of_other_programs(others: str) -> None:
    door = open_door("127.0.0.1", 8080, [], "t0ken-of-the-test")
    cookie = door.set_cookie.partition(";")[0]
    assert door.knows({"cookie": others.replace("{}", cookie)})
    assert not door.knows({"cookie": others.replace("{}", f"x{cookie}")})
    assert not door.knows({"cookie": others.replace("{}", cookie[:-1])})
