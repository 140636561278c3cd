"""Resolves and binds the address of --host and --port, and prints it as a URL."""

import errno
import os
import socket
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from runtime.common.errors import UserError

_UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EINVAL)

SocketAddress = tuple[Any, ...]  # (host, port), or (host, port, flow, scope) for IPv6


class AddressError(UserError):
    """An address that cannot be used now; retrying may help, since networks come up and ports become free."""


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, SocketAddress]:
    """The family and the numeric address of `host`. Raises AddressError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise AddressError(
            f"--host {host}: cannot be resolved: use an address of this machine, such as 127.0.0.1"
        ) from None
    return family, address


def listen(family: socket.AddressFamily, address: SocketAddress) -> socket.socket:
    """A listening socket; for "::" it accepts IPv4 too. Raises AddressError."""
    try:
        return socket.create_server(address, family=family, dualstack_ipv6=_is_dual_stack(address[0]))
    except OSError as error:
        place = f"{address[0]} port {address[1]}: {os.strerror(error.errno or 0).lower()}"
        if error.errno == errno.EINVAL and ip_address(address[0]).is_link_local:
            next_step = f"name its network interface: --host {address[0]}%eth0"
        else:
            next_step = f"choose another with {'--host' if error.errno in _UNAVAILABLE else '--port'}"
        raise AddressError(f"{place}: {next_step}") from None


def url_of(host: str, port: int) -> str:
    """The URL for a browser; for 0.0.0.0 and ::, the address of this machine in its network."""
    if host == "0.0.0.0" or _is_dual_stack(host):
        host = _address_in_network()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_dual_stack(host: str) -> bool:
    return host == "::" and socket.has_dualstack_ipv6()


def _address_in_network() -> str:
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Connecting a datagram socket sends nothing. 192.0.2.1 is reserved (RFC 5737): the default route.
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return socket.gethostname()
