"""Access control: Host header, Origin header and token.

Any web page can make a browser send requests to this machine, but it cannot choose the browser's Host and
Origin headers. Both are therefore checked before the rest of a request. (DNS rebinding: Jackson et al.,
"Protecting Browsers from DNS Rebinding Attacks", 2007. Origin: RFC 6454.)
"""

import argparse
import hmac
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address

from runtime.common.errors import UserError
from runtime.server.errors import RequestRejected
from runtime.server.token_file import MAKE_TOKEN

_HOST_HEADER = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::([0-9]{1,5}))?", re.IGNORECASE)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class AccessPolicy:
    """The rules that a request's headers must pass before its body is read."""

    host_names: frozenset[str]  # accepted in the Host header, in lower case
    is_networked: bool  # True: listens beyond loopback, so every IP address is accepted as Host
    token: str = field(repr=False)  # "" if no token is required
    port: int

    def check(
        self, method: str, headers: Iterable[tuple[bytes, bytes]], *, requires_token: bool = True
    ) -> bool:
        """Returns True if the request carries the token, or if the service requires none.

        Raises RequestRejected: 400, 401 (only if `requires_token`), 403 or 421.
        """
        fields: dict[str, str] = {}
        for name, value in headers:
            key = name.decode("latin-1").lower()
            if key == "host" and key in fields:
                raise RequestRejected(400, "the request has two Host headers")
            fields[key] = value.decode("latin-1")
        host = fields.get("host")
        # Only programs send none (HTTP/1.0); a browser, which DNS rebinding needs, always sends it.
        if host is not None and not self.accepts_host(host):
            unknown = _split(host)[0] or host
            raise RequestRejected(
                421, f"{unknown[:100]!r} is not a name of this service: add it with --allow-host NAME"
            )
        if method not in ("GET", "HEAD"):
            _check_origin(fields, host or "")
        is_authorized = self.is_authorized(fields)
        if requires_token and not is_authorized:
            raise RequestRejected(
                401, "a token is required: send Authorization: Bearer TOKEN, or sign in on the page"
            )
        return is_authorized

    def accepts_host(self, host: str) -> bool:
        """Whether a Host header, with or without a port, names this service."""
        name, _ = _split(host)
        if name in self.host_names:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return self.is_networked or address.is_loopback  # DNS rebinding needs a name, not an address

    def is_authorized(self, fields: Mapping[str, str]) -> bool:
        """Whether the headers (names in lower case) carry the token or its cookie, if a token is required."""
        if not self.token:
            return True
        scheme, _, credentials = fields.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(credentials.strip()):
            return True
        # http.cookies returns no cookie at all if another program on this host set a malformed one.
        found = self._cookie_pattern.findall(fields.get("cookie", ""))
        return any(_equal(value, self._cookie_value) for value in found)

    def is_token(self, text: str) -> bool:
        return _equal(text, self.token)

    @property
    def cookie_name(self) -> str:
        return f"vgg_edge_{self.port}"  # browsers share cookies between the ports of a host

    @property
    def set_cookie_header(self) -> str:
        """The Set-Cookie header that signs a browser in. The cookie does not contain the token."""
        return f"{self.cookie_name}={self._cookie_value}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000"

    # Both once: a header of 64 kB may hold thousands of cookies.
    @cached_property
    def _cookie_pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?:^|;)\s*{self.cookie_name}=([0-9a-f]{{64}})\s*(?=;|$)", re.ASCII)

    @cached_property
    def _cookie_value(self) -> str:
        return hmac.new(self.token.encode(), b"vgg-edge cookie", "sha256").hexdigest()


def make_access_policy(host: str, port: int, allowed_hosts: Iterable[str], token: str) -> AccessPolicy:
    """The policy of a service that listens on `host`, an IP address.

    Raises UserError if the address is not loopback and `token` is empty.
    """
    is_networked = not ip_address(host).is_loopback
    if is_networked and not token:
        raise UserError(
            f"--host {host}: other machines can reach this address, so a token is required: "
            f"create one with `{MAKE_TOKEN}`, then add --token-file token"
        )
    host_names = {"localhost", *(name.lower().removesuffix(".") for name in allowed_hosts)}
    if is_networked:
        own_name = socket.gethostname().lower()
        host_names |= {own_name, f"{own_name}.local"}
    return AccessPolicy(frozenset(host_names), is_networked, token, port)


def host_name(text: str) -> str:
    """Parses a value of --allow-host: a name or an address, with or without a port.

    Raises ArgumentTypeError for text that no browser sends as a Host header.
    """
    with suppress(ValueError):
        return str(ip_address(text))
    with suppress(UnicodeError):
        if name := _split(text.encode("idna").decode())[0]:
            return name
    raise argparse.ArgumentTypeError(
        f"{text!r} is not the name of a host: use a full name such as pi.example.org, without http://"
    )


def _split(host: str, default_port: str = "80") -> tuple[str, str]:
    """The name, in lower case and without brackets, and the port of a Host header; ("", "") if malformed."""
    match = _HOST_HEADER.fullmatch(host)
    if match is None:
        return "", ""
    return (match[1] or match[2]).lower().removesuffix("."), match[3] or default_port


def _check_origin(fields: Mapping[str, str], host: str) -> None:
    if (origin := fields.get("origin")) is not None:
        # Not by urlsplit, which raises ValueError for some malformed origins.
        scheme, _, origin_host = origin.lower().partition("://")
        port = _DEFAULT_PORTS.get(scheme, "")
        other = _split(origin_host, port)
        if not other[0] or other != _split(host, port):
            raise RequestRejected(403, f"the request comes from another site ({origin[:100]!r})")
    if fields.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise RequestRejected(403, "the request comes from another site")


def _equal(text: str, secret: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(text.encode("utf-8", "replace"), secret.encode())
