"""A page and an address for programs: `python -m runtime.serve`, then http://127.0.0.1:8080 in a browser.

The page shows what a camera sees and takes photos; POST /classify answers as `runtime.classify --json` does.
"""

import argparse
import errno
import logging
import os
import socket
import sys
from asyncio import CancelledError
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from typing import Any

from runtime.common.cli import ArgumentParser, positive_int, run_cli
from runtime.common.errors import UserError
from runtime.common.terminal import print_error, print_info, stop_on_sigterm, suppress_native_stderr
from runtime.common.text import printable
from runtime.inference.model_options import add_model_options, classifier_options

GRACE = 3  # seconds that requests get to end when the service is asked to


class AddressError(UserError):
    """An address that cannot be listened on now: the network may not be up yet, or the port in use."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ended by SIGTERM, 1 address away or in use, 2 usage, no model, no engine, no token."""

    def run() -> int:
        try:
            return _serve(_arguments(argv))
        except AddressError as error:
            print_error(str(error))
            return 1

    return run_cli(run)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    def port(text: str) -> int:
        if not text.isdecimal() or int(text) > 65535:
            raise argparse.ArgumentTypeError(f"{text} is no port: give one from 0 to 65535")
        return int(text)

    parser = ArgumentParser(
        prog="python -m runtime.serve",
        description="A page that shows what a camera sees and names photos; the same for programs.",
        epilog="GET /openapi.json describes the addresses for programs. Exit codes: 0 ended by SIGTERM, "
        "1 the address is not there or in use, which another try may mend, 2 usage, no model, no engine, "
        "no token.",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on; 0.0.0.0 for all of this machine's, which needs a token "
        "(default: %(default)s)",
    )
    parser.add_argument("--port", type=port, default=8080, help="default: %(default)s; 0 for any")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="serve those alone who know what is in it (default: VGG_EDGE_TOKEN, if it is set)",
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="another name that this machine is reached by, such as pi.example.org; may be repeated",
    )
    parser.add_argument(
        "--camera",
        nargs="?",
        const="0",
        metavar="SOURCE",
        help="show what it sees, as with runtime.classify; one that is away is waited for",
    )
    parser.add_argument(
        "--every", type=float, default=0.0, metavar="SECONDS", help="look at most once in so long"
    )
    add_model_options(parser)
    parser.add_argument(
        "--queue",
        type=positive_int,
        metavar="N",
        default=64,
        help="photos at once; whoever comes then is told when to try again (default: %(default)s)",
    )
    parser.add_argument(
        "--max-upload",
        type=float,
        metavar="MB",
        default=32.0,
        help="the largest photo (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if not 0 < arguments.max_upload <= 1000 or not 0 <= arguments.every < 1e6:
        parser.error("--max-upload is 1000 MB at most, --every not below 0")
    return arguments


def _serve(arguments: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C; gives the exit code, 0. Raises UserError before the first request.

    AddressError is the one that another try may mend.
    """
    _need_web()
    import uvicorn

    from runtime.camera.camera import Camera
    from runtime.inference.model_reloader import ReloadingClassifier
    from runtime.server.app import make_app
    from runtime.server.auth import open_door, read_token
    from runtime.server.connection_limits import BoundedHttpProtocol, drop_late
    from runtime.server.inference_queue import BEAT_EVERY, InferenceQueue
    from runtime.server.live_view import LiveView
    from runtime.server.systemd import notify, watchdog_interval

    _quiet_libraries()
    token = read_token(arguments.token_file)
    family, address = _resolve(arguments.host, arguments.port)
    open_door(address[0], address[1], (), token)  # refused before the port is taken
    with stop_on_sigterm(), ExitStack() as stack:
        listening = stack.enter_context(_listen(family, address))
        port = listening.getsockname()[1]
        door = open_door(address[0], port, [*arguments.allow_host, arguments.host], token)
        camera = Camera(arguments.camera, retry=True, on_message=print_info) if arguments.camera else None
        with suppress_native_stderr():
            live = ReloadingClassifier(arguments.model, say=print_info, **classifier_options(arguments))
        service = InferenceQueue(live, places=arguments.queue, max_bytes=int(1e6 * arguments.max_upload))
        view = LiveView(stack.enter_context(camera), live, arguments.every) if camera else None
        print(printable(str(live.now())))
        print(f"{_url(address[0], port, token)}  (Ctrl-C ends it)", flush=True)

        async def sweep() -> None:
            drop_late(server)

        server = uvicorn.Server(
            uvicorn.Config(
                make_app(
                    service,
                    door,
                    view,
                    beat_every=min(BEAT_EVERY, watchdog_interval() or BEAT_EVERY),
                    ready=lambda: notify("READY=1"),
                    beating=lambda: notify("WATCHDOG=1"),
                ),
                http=BoundedHttpProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE,
                callback_notify=sweep,
                timeout_notify=1,
            )
        )
        try:
            server.run(sockets=[listening])
        finally:
            notify("STOPPING=1")
    return 0


def _quiet_libraries() -> None:
    """Of what the libraries log, failures of ours alone are printed.

    The rest is told to whoever sent the request, or is that the service ends while there are requests.
    """

    def is_failure(record: logging.LogRecord) -> bool:
        return record.exc_info is not None and not isinstance(record.exc_info[1], CancelledError)

    logging.getLogger("uvicorn.error").addFilter(is_failure)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


def _need_web() -> None:
    missing = [
        name
        for name in ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client")
        if find_spec(name) is None
    ]
    if missing:
        raise UserError(f"{', '.join(missing)} is not installed: pip install 'vgg-edge[web]'")


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise AddressError(f"--host {host}: is no address of this machine; 127.0.0.1 always is") from None
    return family, address


def _listen(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    try:
        return socket.create_server(
            address, family=family, backlog=128, dualstack_ipv6=_means_ipv4_too(address[0])
        )
    except OSError as error:
        option = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        reason = os.strerror(error.errno or 0).lower()
        raise AddressError(f"{address[0]} port {address[1]}: {reason}: {option} takes another") from None


def _means_ipv4_too(host: str) -> bool:
    """Whether all of IPv6 is to be listened on, and this machine can listen on all of IPv4 with it."""
    return host == "::" and socket.has_dualstack_ipv6()


def _url(host: str, port: int, token: str) -> str:
    """For a browser. With the token where a person reads it, and nowhere else: output may be a log."""
    if host == "0.0.0.0" or _means_ipv4_too(host):
        host = _own_address()
    shown = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return f"{shown}/#token={token}" if token and sys.stdout.isatty() else shown


def _own_address() -> str:
    """This machine's address in its network. Connecting a datagram socket sends nothing."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(
            ("192.0.2.1", 9)
        )  # an address for documentation, RFC 5737: reached by the default route
        return str(probe.getsockname()[0])
    return socket.gethostname()


if __name__ == "__main__":
    code = main()
    # The engine's and decoder's threads may be in the middle of something that nobody waits for any more.
    sys.stdout.flush()
    os._exit(code)
