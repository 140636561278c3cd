"""Leaves this process the system calls of decoding: it cannot change files or other processes any more.

Limits on resources (decode_worker.py) stop calls that need a file descriptor. Without this filter an exploit
of a decoder could still delete, truncate or rename the user's files, start programs and send signals. The
kernel checks each call: seccomp(2), with a program for the classic BPF machine.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

try:  # here, because the process that calls allow_only_decoding cannot open files any more
    import ctypes
except (ImportError, MemoryError):  # MemoryError: the system forbids memory that ctypes wants to execute
    ctypes = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _Machine:
    """The numbers of the kernel's interface on one kind of processor."""

    audit: int  # AUDIT_ARCH_… of linux/audit.h
    seccomp: int  # the call that sets a filter
    allowed: tuple[int, ...]
    clone: int
    clone3: int
    prlimit64: int
    tgkill: int


# Memory, time, threads, signals of this process, and open files: the calls that CPython, Pillow, libheif and
# libavif use after the start. Opening a file is left to its limit, whose error the worker knows.
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        seccomp=317,
        # read write open close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction
        # rt_sigprocmask rt_sigreturn ioctl pread64 readv writev access sched_yield mremap mincore madvise
        allowed=(
            *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 24, 25, 27, 28),
            # dup nanosleep getitimer setitimer getpid exit uname fcntl getcwd readlink gettimeofday
            *(32, 35, 36, 38, 39, 60, 63, 72, 79, 89, 96),
            # getrlimit getrusage sysinfo times getuid getgid geteuid getegid sigaltstack prctl arch_prctl
            *(97, 98, 99, 100, 102, 104, 107, 108, 131, 157, 158),
            # setrlimit gettid time futex sched_getaffinity set_tid_address clock_gettime clock_getres
            *(160, 186, 201, 202, 204, 218, 228, 229),
            # clock_nanosleep exit_group openat newfstatat faccessat set_robust_list getrandom
            *(230, 231, 257, 262, 269, 273, 318),
            *(324, 332, 334, 439),  # membarrier statx rseq faccessat2
        ),
        clone=56,
        clone3=435,
        prlimit64=302,
        tgkill=234,
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        seccomp=277,
        # getcwd dup fcntl ioctl faccessat openat close lseek read write readv writev pread64 ppoll
        allowed=(
            *(17, 23, 25, 29, 48, 56, 57, 62, 63, 64, 65, 66, 67, 73),
            # readlinkat newfstatat fstat exit exit_group set_tid_address futex set_robust_list nanosleep
            *(78, 79, 80, 93, 94, 96, 98, 99, 101),
            # getitimer setitimer clock_gettime clock_getres clock_nanosleep sched_getaffinity sched_yield
            *(102, 103, 113, 114, 115, 123, 124),
            # sigaltstack rt_sigaction rt_sigprocmask rt_sigreturn times uname getrlimit setrlimit getrusage
            *(132, 134, 135, 139, 153, 160, 163, 164, 165),
            # prctl gettimeofday getpid getuid geteuid getgid getegid gettid sysinfo brk munmap mremap
            *(167, 169, 172, 174, 175, 176, 177, 178, 179, 214, 215, 216),
            # mmap mprotect mincore madvise getrandom membarrier statx rseq faccessat2
            *(222, 226, 232, 233, 278, 283, 291, 293, 439),
        ),
        clone=220,
        clone3=435,
        prlimit64=261,
        tgkill=131,
    ),
}

_CLONE_THREAD = 0x10000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2  # of prctl(2)
_SET_MODE_FILTER, _ALL_THREADS = 1, 1  # of seccomp(2)
_LOAD, _IF_EQUAL, _IF_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # of the BPF machine
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_CALL, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in the kernel's struct seccomp_data

Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, operand


def allow_only_decoding() -> bool:
    """Filters the system calls of all threads, for good: any other call fails with EPERM.

    Returns False, and changes nothing, where the kernel or the processor has no such filter: outside Linux on
    x86_64 and 64-bit Arm, and in some emulators. It also needs Python's ctypes.
    """
    if sys.platform != "linux" or ctypes is None:
        return False
    machine = _MACHINES.get(os.uname().machine)
    if machine is None or struct.calcsize("P") != 8:
        return False
    code = b"".join(struct.pack("=HBBI", *each) for each in _filter(machine, os.getpid()))
    instructions = ctypes.create_string_buffer(code, len(code))
    sock_fprog = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    program = ctypes.create_string_buffer(sock_fprog, len(sock_fprog))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(machine.seccomp, _SET_MODE_FILTER, _ALL_THREADS, program) == 0:
        return True
    # A service manager may forbid that call. This one filters the calling thread, and threads that it starts.
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0) == 0)


def _filter(machine: _Machine, process_id: int) -> Sequence[Instruction]:
    """The program: a call is allowed, or fails with an error."""
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, machine.audit),
        refuse,  # the numbers of another interface mean other calls
        (_LOAD, 0, 0, _CALL),
        # The C library starts threads with clone instead, whose flags are in the first argument.
        (_IF_EQUAL, 0, 1, machine.clone3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number, operation, value in (
        (machine.clone, _IF_BIT, _CLONE_THREAD),  # a thread, no process
        (machine.prlimit64, _IF_EQUAL, 0),  # this process
        (machine.tgkill, _IF_EQUAL, process_id),
    ):
        program += [
            (_IF_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (operation, 0, 1, value),
            allow,
            refuse,
        ]
    for at, number in enumerate(machine.allowed):
        program.append((_IF_EQUAL, len(machine.allowed) - at, 0, number))
    return [*program, refuse, allow]
