"""What a service tells systemd: sd_notify(3)'s protocol, one datagram to the socket named in the environment.

    notify("READY=1")                    # the model is loaded, requests are answered
    while work():
        notify("WATCHDOG=1")             # at least every watchdog_interval() seconds
    notify("STOPPING=1")

Started by anything but systemd, nothing is sent.
"""

import os
import socket


def notify(state: str) -> bool:
    """Sends NAME=VALUE lines, such as "READY=1" or "STATUS=loading". Whether they were sent.

    Never raises: sd_notify(3) advises services to work on when nobody takes their word, and systemd itself
    ends one whose READY=1 or WATCHDOG=1 does not come.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):  # unset, or another kind of socket, such as a virtual machine's
        return False
    if address.startswith("@"):  # how the environment writes the NUL byte of an abstract address
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError:
        return False
    return True


def watchdog_interval() -> float | None:
    """Seconds from one WATCHDOG=1 to the next, half of what systemd waits; None when it does not wait.

    The half, and the check that the variable means this process, are sd_watchdog_enabled(3)'s.
    """
    waits = os.environ.get("WATCHDOG_USEC", "")
    meant_for = os.environ.get("WATCHDOG_PID", "")
    if not waits.isdecimal() or int(waits) == 0 or meant_for not in ("", str(os.getpid())):
        return None
    return int(waits) / 2_000_000
