"""Who may ask the service: the Host header, the Origin of what changes something, and the token.

A page anywhere on the web can have a browser send requests to this machine. What it cannot choose is the
browser's Host and Origin headers, so these are looked at before anything else. (DNS rebinding: Jackson et
al., "Protecting Browsers from DNS Rebinding Attacks", 2007. Origin: RFC 6454.)
"""

import hmac
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from runtime.common.errors import UserError

TOKEN_VARIABLE = "VGG_EDGE_TOKEN"
MIN_TOKEN = 16  # characters: nobody counts how often one is guessed at
MAKE_TOKEN = "python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"

_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?", re.IGNORECASE)


class RequestRejected(Exception):
    """A request that is not served: an HTTP status, and one line for whoever sent it."""

    def __init__(
        self, status: int, reason: str, *, source: str = "-", retry_after: int | None = None
    ) -> None:
        super().__init__(reason)
        self.status, self.reason, self.source, self.retry_after = status, reason, source, retry_after


@dataclass(frozen=True)
class AccessPolicy:
    """What is checked before a request is read any further."""

    names: frozenset[str]  # the Host names that are answered to, in lower case
    beyond: bool  # whether it listens beyond this machine: then any IP address is a name of it
    token: str  # "" where none is asked for
    port: int

    def check(self, method: str, headers: Iterable[tuple[bytes, bytes]], *, public: bool = False) -> None:
        """Raises Refused: 400, 401 (unless `public`), 403 or 421."""
        fields: dict[str, str] = {}
        for name, value in headers:
            key = name.decode("latin-1").lower()
            if key == "host" and key in fields:
                raise RequestRejected(400, "has two Host headers")
            fields[key] = value.decode("latin-1")
        host = fields.get("host", "")
        if not self.answers_to(host):
            raise RequestRejected(
                421, f"this service is not called {host[:100]!r}; --allow-host NAME adds a name to it"
            )
        if method not in ("GET", "HEAD"):
            self._check_origin(fields, host)
        if not public and not self.knows(fields):
            raise RequestRejected(401, "needs the token: Authorization: Bearer TOKEN, or the page's form")

    def answers_to(self, host: str) -> bool:
        """Whether a Host header, with or without a port, is a name of this service."""
        found = _AUTHORITY.fullmatch(host)
        if found is None:
            return False
        name = (found[1] or found[2]).lower().removesuffix(".")
        if name in self.names:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return self.beyond or address.is_loopback  # no one can have an address point elsewhere

    def _check_origin(self, fields: Mapping[str, str], host: str) -> None:
        origin = fields.get("origin")
        # An origin is scheme://host:port and nothing else: urlsplit would raise for some that are not.
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise RequestRejected(403, f"comes from another page ({origin[:100]!r})")
        if fields.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise RequestRejected(403, "comes from another page")

    def knows(self, fields: Mapping[str, str]) -> bool:
        """Whether a request brings the token, or the cookie that was given for it."""
        if not self.token:
            return True
        scheme, _, given = fields.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        # By hand: http.cookies gives none at all when another program on this host has set one it dislikes.
        cookies = (cookie.strip().partition("=") for cookie in fields.get("cookie", "").split(";"))
        return any(
            name == self.cookie_name and _same(value, self._cookie_value) for name, _, value in cookies
        )

    def is_token(self, given: str) -> bool:
        return _same(given, self.token)

    @property
    def cookie_name(self) -> str:
        return f"vgg_edge_{self.port}"  # cookies do not tell ports apart

    @property
    def set_cookie(self) -> str:
        """What a browser gets for the token. It is not the token: a cookie travels with every request."""
        return f"{self.cookie_name}={self._cookie_value}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000"

    @property
    def _cookie_value(self) -> str:
        return hmac.new(self.token.encode(), b"vgg-edge cookie", "sha256").hexdigest()


def open_door(host: str, port: int, allowed: Iterable[str], token: str) -> AccessPolicy:
    """The door of a service that listens on `host`, an address. Raises UserError: not without a token."""
    beyond = not ip_address(host).is_loopback
    if beyond and not token:
        raise UserError(
            f"--host {host}: listens beyond this machine only with a token: "
            f"put the output of {MAKE_TOKEN} into a file and give it with --token-file"
        )
    names = {"localhost", *(name.lower().removesuffix(".") for name in allowed)}
    if beyond:
        own = socket.gethostname().lower()
        names |= {own, f"{own}.local"}
    return AccessPolicy(frozenset(names), beyond, token, port)


def read_token(file: str | None) -> str:
    """The token in `file`, else in VGG_EDGE_TOKEN, else "". Raises UserError."""
    if file is None:
        token, whose = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not token:
            return ""
    else:
        whose = file
        try:
            with Path(file).open("rb") as opened:
                token = opened.read(10_000).decode("ascii").strip()
        except OSError as error:
            raise UserError(f"{file}: {str(error.strerror or error).lower()}") from None
        except UnicodeDecodeError:
            raise UserError(f"{file}: is not a token: it must be plain letters, digits and signs") from None
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{whose}: a token has {MIN_TOKEN} or more letters, digits and signs: {MAKE_TOKEN} makes one"
        )
    return token


def _same(one: str, other: str) -> bool:
    """Takes as long whatever the texts are."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())
