"""Sends status messages to systemd by sd_notify(3)'s protocol: one datagram to the socket in NOTIFY_SOCKET.

    notify("READY=1")                    # the model is loaded, requests are answered
    while work():
        notify("WATCHDOG=1")             # at least every watchdog_interval() seconds
    notify("STOPPING=1")

Nothing is sent if systemd did not start the process.
"""

import os
import socket


def notify(state: str) -> bool:
    """Sends NAME=VALUE lines, such as "READY=1" or "STATUS=loading". Returns whether they were sent.

    Never raises: sd_notify(3) advises services to ignore failures, and systemd itself restarts a service
    whose READY=1 or WATCHDOG=1 does not arrive.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):  # unset, or another kind of socket, such as a virtual machine's
        return False
    if address.startswith("@"):  # stands for the NUL byte of an abstract address
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError:
        return False
    return True


def watchdog_interval() -> float | None:
    """Seconds between two WATCHDOG=1 messages: half of systemd's timeout. None if the watchdog is off.

    Source of the half and of the check of WATCHDOG_PID: sd_watchdog_enabled(3).
    """
    timeout_usec = os.environ.get("WATCHDOG_USEC", "")
    process_id = os.environ.get("WATCHDOG_PID", "")
    if not timeout_usec.isdecimal() or int(timeout_usec) == 0 or process_id not in ("", str(os.getpid())):
        return None
    return int(timeout_usec) / 2_000_000
