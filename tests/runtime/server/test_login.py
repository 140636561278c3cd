"""A service that requires a token."""

from __future__ import annotations

import json

import pytest

from tests.serving import TOKEN, Client


@pytest.mark.parametrize("path", ["/status", "/metrics", "/live.jpg"])
def test_data_requires_the_token(private: Client, path: str) -> None:
    status, headers, _ = private.request("GET", path)
    assert status == 401 and headers["www-authenticate"] == "Bearer"
    assert private.get_status(path, Authorization=f"Bearer {TOKEN}") != 401


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/healthz"])
def test_the_page_and_the_health_check_are_public(private: Client, path: str) -> None:
    assert private.get_status(path) == 200


def test_classify_requires_the_exact_token(private: Client, red_jpeg: bytes) -> None:
    assert private.classify(red_jpeg)[0] == 401
    assert private.classify(red_jpeg, Authorization=f"Bearer {TOKEN[:-1]}")[0] == 401
    assert private.classify(red_jpeg, Authorization=f"Bearer {TOKEN}")[0] == 200


def test_login_returns_a_cookie_that_is_not_the_token(private: Client) -> None:
    assert private.request("POST", "/login", json.dumps({"token": TOKEN[:-1]}))[0] == 401
    status, headers, _ = private.request("POST", "/login", json.dumps({"token": TOKEN}))
    cookie = headers["set-cookie"]
    assert status == 204 and "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    name = cookie.partition("=")[0]
    assert private.get_status("/status", Cookie=cookie.partition(";")[0]) == 200
    assert private.get_status("/status", Cookie=f"{name}=wrong") == 401


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"token": 1}', "[" * 2000])
def test_a_malformed_login_is_rejected(private: Client, body: str) -> None:
    assert private.request("POST", "/login", body)[0] in (400, 401)
