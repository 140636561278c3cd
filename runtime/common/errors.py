"""The errors that a command prints as one line: what happened, why, and what to do next."""


class UserError(Exception):
    """An error that the user can fix. Its text is one line: the thing, the reason, the next step."""


class PictureError(UserError):
    """A picture that cannot be read. Other pictures are not affected."""


class UnsupportedPictureError(PictureError):
    """A picture in a format that is not supported, or not without another package."""


class ModelError(UserError):
    """A model file or folder that is missing, damaged, or has another contract version."""


class WriteError(UserError):
    """A file of the device's own state that cannot be written, such as on a full disk."""


class EngineError(UserError):
    """An inference engine that is not installed, or cannot run this file."""


class DecoderError(EngineError):
    """The process that decodes pictures cannot be started."""


class CameraError(UserError):
    """A camera that is missing, in use, forbidden to this user, or disconnected."""
