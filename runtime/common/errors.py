"""The errors that a command prints as one line: what, why, and the next step."""


class UserError(Exception):
    """Something the user can mend. Its text is one whole line: the thing, the reason, the next step."""


class PictureError(UserError):
    """A picture that cannot be read; the other pictures are not affected."""


class UnsupportedPictureError(PictureError):
    """Bytes of a kind that is not read here, or not without another package."""


class ModelError(UserError):
    """A model file or folder that is missing, damaged, or of another contract."""


class EngineError(UserError):
    """An inference engine that is not installed, or that cannot run this file."""


class CameraError(UserError):
    """A camera that is not there, not allowed, not free, or that went away."""
