"""Check the address of a Ray cluster before anything slow starts."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from importlib.util import find_spec

from runtime.common.errors import UserError
from runtime.common.packages import install_command

ANSWER_SECONDS = 15  # Ray itself keeps trying a dead address for two minutes
RETRIES = 3  # of a shard whose worker died, because photos that kill each worker must not run forever

# Set before Ray is imported: no usage reports, and none of Ray's own log lines.
RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_task_oom_retries": str(RETRIES),  # Ray's default retries a shard that fills the memory forever
}
CONNECT = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"
HINT = "`ray start --head` starts a cluster, and --ray local starts one on this machine"


class ClusterError(UserError):
    """A Ray cluster that cannot be reached, or whose workers cannot compute features."""


def check_ray_address(address: str) -> None:
    """Raise ClusterError if Ray is not installed or no cluster answers at `address`.

    `address` is HOST:PORT of the head of a cluster, "auto" for the cluster of this machine, or "local" for a
    cluster that starts when it is needed.
    """
    if find_spec("ray") is None:
        raise ClusterError(f"--ray needs Ray, which is not installed: {install_command('ray')}")
    if address in ("local", "auto"):
        return
    if not (match := re.fullmatch(r"\[?([^/@\s]+?)\]?:(\d{1,5})", address)):
        raise ClusterError(
            f"--ray {address}: is not an address; give HOST:PORT of the head of a Ray cluster, auto or local"
        )
    try:
        socket.create_connection((match[1], int(match[2])), timeout=5).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(f"--ray {address}: no answer ({reason}); {HINT}") from None
    _check_that_ray_answers(address)


def cannot_connect(address: str, output: str) -> ClusterError:
    """The error for a cluster that refused the connection, with the last line of Ray's output."""
    last = output.strip().splitlines()[-1:] or ["no reason given"]
    return ClusterError(
        f"--ray {address}: cannot connect ({last[0]}); this machine needs the Python and Ray versions of the "
        f"head and must be a node of the cluster: `ray start --address {address} --num-cpus 0` makes it one"
    )


def _check_that_ray_answers(address: str) -> None:
    """Connect in a subprocess, because only the end of its process stops Ray from trying again."""
    command = [sys.executable, "-c", CONNECT, address]
    try:
        done = subprocess.run(
            command, env=os.environ | RAY_SETTINGS, capture_output=True, timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        if b"AuthToken" in (error.stderr or b""):
            raise ClusterError(
                f"--ray {address}: the cluster requires a token; set RAY_AUTH_MODE=token as on its head, and "
                "copy the head's ~/.ray/auth_token to each machine"
            ) from None
        raise ClusterError(
            f"--ray {address}: the server at this address is not Ray: no answer in {ANSWER_SECONDS} s; {HINT}"
        ) from None
    if done.returncode:
        raise cannot_connect(address, done.stderr.decode(errors="replace"))
