"""mount(2) and umount2(2): at once, and without the table of mounts, which others change at the same time."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_RDONLY, _REMOUNT, _BIND, _DETACH = 1, 32, 4096, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def tmpfs(folder: Path, size: int) -> None:
    """A new file system of `size` bytes in memory at `folder`. Raises OSError, as all of these do."""
    _mount("tmpfs", folder, "tmpfs", 0, f"size={size}")


def resize(folder: Path, size: int) -> None:
    """Another size [bytes] for a tmpfs; fails when more is in use."""
    _mount("tmpfs", folder, "tmpfs", _REMOUNT, f"size={size}")


def read_only(folder: Path) -> None:
    """A read-only view of `folder` over itself; files that are open already can still be written."""
    _mount(str(folder), folder, "", _BIND)
    _mount("", folder, "", _BIND | _REMOUNT | _RDONLY)


def unmount(folder: Path) -> None:
    """Undo one of them, even where files are open."""
    if _LIBC.umount2(os.fsencode(folder), _DETACH):
        raise _error(folder)


def used(folder: Path) -> int:
    """Bytes in use on the file system of `folder`."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _mount(source: str, folder: Path, kind: str, flags: int, options: str = "") -> None:
    if _LIBC.mount(source.encode(), os.fsencode(folder), kind.encode(), flags, options.encode()):
        raise _error(folder)


def _error(folder: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(folder))
