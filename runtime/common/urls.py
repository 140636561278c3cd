"""Addresses of cameras, which may hold a password, as they may be printed."""

import os
import re


def hide_password(source: str) -> str:
    """Returns a camera's address without its password and without the values in its path and query.

    A password may hold an unescaped / or @, so of the text before the last @ only the user name is kept.
    An address without a scheme is treated in the same way, unless it is the path of an existing file.
    """
    scheme, separator, rest = source.partition("://")
    if not separator:
        if "@" not in source or ":" not in source.rpartition("@")[0] or os.path.lexists(source):
            return source
        scheme, rest = "", source
    credentials, at, place = rest.rpartition("@")
    if not at and (user := re.match(r"([^/?:\[]*):(?!\d*([/?]|$))", rest)):  # USER:PASSWORD without a host
        return f"{scheme}{separator}{user[1]}:***"
    shown = f"{credentials.partition(':')[0]}:***@" if ":" in credentials else "***@" if at else ""
    path, question_mark, query = place.partition("?")
    path = re.sub("=[^;/]*", "=***", path)
    values = [f"{part.partition('=')[0]}=***" if "=" in part else "***" for part in query.split("&")]
    return f"{scheme}{separator}{shown}{path}{question_mark}{'&'.join(values) if query else ''}"
