"""No network where a model runs: the worker's child process, and what it starts, is cut off before it loads anything.

What the child needs are pipes, files and Unix sockets. Two fences stand around it: the kernel (seccomp(2): a socket of
any other family than Unix and netlink cannot be made, by no library and no program that is started), and Python's audit
hook (PEP 578), which says in words what was tried and stands alone where the kernel cannot. Neither can be taken down
by the process. Libraries that would look for models in public hubs are told that they are off-line.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import socket
import struct
import sys
from typing import Any

_log = logging.getLogger(__name__)

#: What Hugging Face's libraries and others look at.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}
_ALLOWED = {int(socket.AF_UNIX), int(socket.AF_NETLINK)}
_LOOK_UPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}
_CALLS = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"}
#: Machine -> (AUDIT_ARCH of linux/audit.h, number of socket, number of seccomp).
_MACHINES = {"x86_64": (0xC000003E, 41, 317), "aarch64": (0xC00000B7, 198, 277)}
_IO_URING_SETUP = 425
_X32 = 0x40000000
_PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _TSYNC = 38, 1, 1
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
#: Classic BPF (linux/bpf_common.h): load a word of seccomp_data, jump if equal, jump if greater or equal, return.
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


def cut_off() -> None:
    """Take the network away from this process, for good."""
    os.environ.update(OFFLINE)
    sys.addaudithook(_refuse)
    if not _filter_calls():
        _log.warning(
            "this kernel filters no system calls: models are kept off the network by Python's audit hook alone"
        )


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise where Python code is about to use the network."""
    if not event.startswith("socket."):
        return
    if event == "socket.__new__":
        reaches = arguments[1] not in _ALLOWED and arguments[1] != -1
    elif event in _CALLS:
        reaches = isinstance(arguments[1], tuple) and getattr(arguments[0], "family", None) not in _ALLOWED
    else:
        reaches = event in _LOOK_UPS
    if reaches:
        raise PermissionError(
            errno.EACCES,
            "a model may not reach the network: whatever it needs belongs into its folder (pacs-ai models install)",
        )


class _Program(ctypes.Structure):
    """Struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter_calls() -> bool:
    """Have the kernel refuse sockets of the network to all threads of this process; False where it cannot."""
    known = _MACHINES.get(platform.machine())
    if known is None or sys.platform != "linux":
        return False
    architecture, socket_number, seccomp_number = known
    rules = _rules(architecture, socket_number)
    content = b"".join(struct.pack("<HBBI", *rule) for rule in rules)
    program = _Program(len(rules), content)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    done: int = libc.syscall(seccomp_number, _SET_MODE_FILTER, _TSYNC, ctypes.byref(program))
    return done == 0


def _rules(architecture: int, socket_number: int) -> list[tuple[int, int, int, int]]:
    """Return the filter: (operation, jump if so, jump if not, operand), jumps counted from the next rule."""
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, 8, architecture),  # another architecture's calls: refused
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 6, 0, _X32),
        (_EQUAL, 5, 0, _IO_URING_SETUP),  # it could make sockets, too
        (_EQUAL, 0, 3, socket_number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 1, 0, int(socket.AF_UNIX)),
        (_EQUAL, 0, 1, int(socket.AF_NETLINK)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EACCES),
    ]
