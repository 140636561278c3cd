"""Files that hold a secret, such as a token or a password."""

import os
import stat
from pathlib import Path


def permission_warning(path: str | Path) -> str:
    """Returns a warning if other users can read the file `path`, else "".

    systemd's credentials are exempt: they grant access by an ACL, which shows as a readable group.
    """
    path = Path(path)
    if os.name != "posix" or path.parent == Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere")):
        return ""
    if not path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return ""
    return f"warning: other users of this machine can read {path}: chmod 600 {path}"
