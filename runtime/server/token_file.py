"""Reads the access token from a file or the environment, and creates a private token file."""

import os
import secrets
from pathlib import Path

from runtime.common.errors import UserError

TOKEN_VARIABLE = "VGG_EDGE_TOKEN"
MIN_TOKEN_LENGTH = 16  # characters; failed guesses are not counted
MAKE_TOKEN = "python -m runtime.serve --make-token token"


def read_token(path: str | None) -> str:
    """The token in the file `path`, or in VGG_EDGE_TOKEN if `path` is None; "" if neither is set.

    Raises UserError.
    """
    if path is None:
        token, source = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not token:
            return ""
    else:
        source = path
        try:
            with Path(path).open("rb") as file:
                token = file.read(10_000).decode("ascii").strip()
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such file: `python -m runtime.serve --make-token {path}` creates it"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: {str(error.strerror or error).lower()}") from None
        except UnicodeDecodeError:
            raise UserError(
                f"{path}: not a token: a token consists of ASCII letters, digits and signs"
            ) from None
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{source}: a token has at least {MIN_TOKEN_LENGTH} ASCII letters, digits and signs, no spaces: "
            f"`{MAKE_TOKEN}` creates one"
        )
    return token


def make_token_file(path: str) -> None:
    """Writes a random token to the new file `path`, mode 0600. Raises UserError if `path` exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(f"{path}: already exists: use it with --token-file {path}, or delete it") from None
    except OSError as error:
        raise UserError(f"{path}: {str(error.strerror or error).lower()}") from None
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    except OSError as error:  # a full disk: an empty file would only be refused later
        Path(path).unlink(missing_ok=True)
        raise UserError(f"{path}: {str(error.strerror or error).lower()}") from None
