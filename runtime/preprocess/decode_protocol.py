"""What decode_pool.py and its workers, decode_worker.py, send each other over pipes."""

import struct

READY = b"+"  # the first byte that a worker sends
REQUEST = struct.Struct("<QHH")  # bytes of the picture, which follow, and height and width of the pixels
REPLY = struct.Struct("<cQ")  # kind, bytes of the data, which follow
RESERVE = b"R"  # data: the bytes of memory that decoding takes, "<Q". The worker waits for GO
GO = b"G"
PIXELS = b"P"  # data: height x width x 3 bytes, RGB
DAMAGED, UNSUPPORTED = b"D", b"U"  # data: the reason
NEEDS_ALL = b"N"  # the picture needs a worker that has loaded the modules of all formats

ALL = "all"  # argument of a worker that loads them. Others start faster
COMMON_FORMATS = ("JPEG", "PNG")
