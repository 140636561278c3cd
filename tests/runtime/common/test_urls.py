"""Addresses of cameras as they may be printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.common.urls import hide_password


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("0", "0"),
        ("/dev/video2", "/dev/video2"),
        ("a?b=c@d.mp4", "a?b=c@d.mp4"),
        ("rtsp://host/stream1", "rtsp://host/stream1"),
        ("rtsp://user:geheim@host:554/stream1", "rtsp://user:***@host:554/stream1"),
        ("rtsp://user:ge/he@im@host/s", "rtsp://user:***@host/s"),
        ("rtsp://geheim@host/s", "rtsp://***@host/s"),
        ("http://host/video?token=geheim&x=geheim", "http://host/video?token=***&x=***"),
        ("http://host/video?geheim", "http://host/video?***"),
        ("rtsp://host/user=geheim_password=geheim_channel=1.sdp?real", "rtsp://host/user=***?***"),
        ("http://u:geheim@host/a?b=geheim@c", "http://u:***@c"),
        ("http://host/v?sig=AAA/geheim==", "http://host/v?sig=***"),
        ("http://host/v?token=a;geheim", "http://host/v?token=***"),
        ("http://host/v?geheim&x=1", "http://host/v?***&x=***"),
        ("admin:geheim@192.168.1.5:554/s", "admin:***@192.168.1.5:554/s"),
        ("rtsp:/admin:geheim@host/s", "rtsp:***@host/s"),
        ("rtsp://admin:geheim", "rtsp://admin:***"),
        ("rtsp://host:554/a:b", "rtsp://host:554/a:b"),
        ("rtsp://[::1]:554/s", "rtsp://[::1]:554/s"),
    ],
)
def test_an_address_is_shown_without_its_password(source: str, shown: str) -> None:
    assert hide_password(source) == shown


def test_the_path_of_an_existing_file_is_shown_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a:b@c.mp4"
    path.write_bytes(b"")
    assert hide_password(str(path)) == str(path)
