"""The messages that decode_pool.py and its workers, decode_worker.py, send each other over pipes."""

import struct

READY = b"+"  # the first byte that a worker sends
# Bytes of the picture, which follow; height and width of the pixels; whether these are the largest ones.
REQUEST = struct.Struct("<QHH?")
REPLY = struct.Struct("<cQ")  # kind, bytes of the data, which follow
RESERVE = b"R"  # data: the bytes of memory that decoding takes, "<Q". The worker waits for GO
GO = b"G"
PIXELS = b"P"  # data: SHAPE, then height x width x 3 bytes, RGB
SHAPE = struct.Struct("<HH")  # height, width
DAMAGED, UNSUPPORTED = b"D", b"U"  # data: the reason
NEEDS_ALL = b"N"  # the picture needs a worker that has loaded the modules of all formats

ALL = "all"  # argument of a worker that loads them. Others start faster
COMMON_FORMATS = ("JPEG", "PNG")
