"""Web page and HTTP API: `python -m runtime.serve`, then open http://127.0.0.1:8080 in a browser.

The page classifies photos and shows a camera; POST /classify returns the JSON of `runtime.classify --json`.
"""

import argparse
import os
import shlex
from collections.abc import Sequence
from importlib.util import find_spec

from runtime.camera.flags import add_confirm_flag, add_crop_flag, add_save_flags, add_source_flag
from runtime.common.cli import ArgumentParser, duration, exit_process, megabytes, positive_int, run_cli
from runtime.common.errors import UserError
from runtime.common.packages import install_command
from runtime.common.terminal import print_error
from runtime.common.text import printable
from runtime.inference.model_options import add_answer_options, add_model_options, classifier_options
from runtime.publish.flags import add_publish_flags, check_publish_flags
from runtime.server.address import AddressError
from runtime.server.auth import host_name
from runtime.server.token_file import TOKEN_VARIABLE, make_token_file

WEB_PACKAGES = ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 stopped by SIGTERM, 1 address unavailable, 2 usage, model, engine or token error."""

    def run() -> int:
        try:
            return _run(_parse_arguments(argv))
        except AddressError as error:
            print_error(str(error))
            return 1

    return run_cli(run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.make_token is not None:
        make_token_file(arguments.make_token)
        print(printable(f"token written: start the service with --token-file {arguments.make_token}"))
        return 0
    _require_web_packages()
    from runtime.camera.options import save_options
    from runtime.publish.publishers import publish_options
    from runtime.server.run import ServerConfig, run_server  # needs the web packages

    run_server(
        ServerConfig(
            host=arguments.host,
            port=arguments.port,
            token_file=arguments.token_file,
            allowed_hosts=tuple(arguments.allow_host),
            camera=arguments.camera,
            every=arguments.every,
            crop=arguments.crop,
            confirm=arguments.confirm,
            saving=save_options(arguments),
            publishing=publish_options(arguments),
            model=arguments.model,
            classifier_options=classifier_options(arguments),
            queue_capacity=arguments.queue,
            max_upload_bytes=int(1e6 * arguments.max_upload),
        )
    )
    return 0


def _require_web_packages() -> None:
    missing = [name for name in WEB_PACKAGES if find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"{', '.join(missing)} {are} not installed: {install_command('web')}")


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m runtime.serve",
        description="Serve a web page and an HTTP API that classify photos and show a camera.",
        epilog="GET /openapi.json describes the HTTP API. Exit codes: 0 stopped by SIGTERM; 1 the address is "
        "unavailable or in use (retrying may help); 2 usage error, or no model, engine or token.",
    )
    add_model_options(parser)
    add_answer_options(parser)
    _add_network_flags(parser)
    _add_camera_flags(parser)
    add_save_flags(parser)
    add_publish_flags(parser)
    _add_limit_flags(parser)
    parser.add_argument(
        "--options-from",
        metavar="VARIABLE",
        help="read more options from this environment variable, where other users of this machine cannot see "
        "them, such as the password of a camera",
    )
    arguments = parser.parse_args(argv)
    if arguments.options_from is not None:
        parser.parse_args(_options_in(parser, arguments.options_from), namespace=arguments)
    check_publish_flags(parser, arguments)
    return arguments


def _options_in(parser: argparse.ArgumentParser, variable: str) -> list[str]:
    """Returns the words of an environment variable, which are separated as in a shell."""
    if variable not in os.environ:
        parser.error(f"--options-from: the environment variable {variable} is not set")
    try:
        return shlex.split(os.environ[variable])
    except ValueError as error:
        parser.error(f"--options-from: {variable}: {str(error).lower()}")


def _add_network_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network and access")
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 serves your network and needs a token (default: %(default)s)",
    )
    group.add_argument(
        "--port",
        type=_port,
        default=8080,
        help="port to listen on; 0 chooses a free one (default: %(default)s)",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"require the token in FILE from all clients (default: the token in {TOKEN_VARIABLE}, if set)",
    )
    group.add_argument(
        "--make-token", metavar="FILE", help="write a random token to FILE, readable by you only, and exit"
    )
    group.add_argument(
        "--allow-host",
        type=host_name,
        metavar="NAME",
        action="append",
        default=[],
        help="accept NAME, such as pi.example.org, as a name of this machine; may be repeated",
    )


def _add_camera_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("camera")
    add_source_flag(
        group, "show this camera (SOURCE as in runtime.classify); the service waits for an unavailable camera"
    )
    group.add_argument(
        "--every",
        type=duration,
        default=0.0,
        metavar="TIME",
        help="classify at most one frame per TIME, such as 500ms, 1s or 2m",
    )
    add_confirm_flag(group)
    add_crop_flag(group)


def _add_limit_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--queue",
        type=positive_int,
        metavar="N",
        default=64,
        help="accept N photos at once; further requests get 503 with Retry-After (default: %(default)s)",
    )
    group.add_argument(
        "--max-upload",
        type=_upload_limit,
        metavar="MB",
        default=32,
        help="reject larger photos; at most 1000 (default: %(default)s)",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: choose a number from 0 to 65535")
    return int(text)


def _upload_limit(text: str) -> float:
    if not 0 < (limit := megabytes(text)) <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not a size: choose a number of megabytes up to 1000")
    return limit


if __name__ == "__main__":
    exit_process(main())
