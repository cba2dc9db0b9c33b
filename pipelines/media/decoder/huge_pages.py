"""Huge pages for the heap and the code of the process from which decoders are forked.

A page of memory has 4 KB, a huge one 2 MB. A forked process maps and copies pages one by one, for
1 to 4 us each, and finds its code faster in few large ones.
"""

import ctypes
import mmap
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HUGE_PAGE = 2 << 20
HOT_CODE = re.compile(
    r"/(libavcodec|libavformat|libswscale|_multiarray_umath|libpython|python3)[^/]*$"
)
"""Files whose code runs most of the time."""
_MADV_COLLAPSE = 25
_REPLACE = 3
"""MREMAP_MAYMOVE and MREMAP_FIXED."""
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
if sys.platform.startswith("linux"):
    _ADDRESS, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    _libc.mmap.restype = _libc.mremap.restype = _ADDRESS
    _libc.mmap.argtypes = (_ADDRESS, _SIZE, _INT, _INT, _INT, ctypes.c_long)
    _libc.mremap.argtypes = (_ADDRESS, _SIZE, _SIZE, _INT, _ADDRESS)
    _libc.mprotect.argtypes = _libc.madvise.argtypes = (_ADDRESS, _SIZE, _INT)
    _libc.munmap.argtypes = (_ADDRESS, _SIZE)


class Heap:
    """The heap of the C library in this process, most of whose pages every decoder writes to."""

    def __init__(self) -> None:
        self._start = self._stop = 0
        for start, stop, _, name in _mappings():
            if name == "[heap]":
                self._start = self._start or _up(start)
                self._stop = _down(stop)
        self._split_huge_pages()

    def make_own(self) -> None:
        """Copies the heap in pages of 2 MB, 0.4 ms each against 1.4 in small pages (measured).

        Kernels before 6.1 do not support this. There, pages are copied when they are written to.
        """
        if self._stop > self._start:
            _libc.madvise(self._start, self._stop - self._start, _MADV_COLLAPSE)

    def _split_huge_pages(self) -> None:
        """Splits pages of 2 MB, which `make_own` would take for pages that are already its own."""
        for start in range(self._start, self._stop, HUGE_PAGE):
            # A page with other flags than its neighbors cannot be part of a larger one. Its rights
            # must stay, because it may hold what this very code writes.
            for advice in (mmap.MADV_DONTFORK, mmap.MADV_DOFORK):
                _libc.madvise(start, mmap.PAGESIZE, advice)


def enlarge_code_pages() -> None:
    """Copies the code that runs most into huge pages, at the same addresses.

    Files are mapped in small pages, of which each forked process maps some 300 again. Where the
    kernel or its policy refuses, the code stays where it is.
    """
    if platform.machine() != "x86_64" or not _has_huge_pages():
        return
    for start, stop, rights, name in _mappings():
        if rights == "r-xp" and HOT_CODE.search(name) and _down(stop) > _up(start):
            _move(_up(start), _down(stop) - _up(start))


def _move(start: int, num_bytes: int) -> None:
    room = num_bytes + HUGE_PAGE  # for a copy that begins at a whole huge page
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    new = _libc.mmap(None, room, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if new is None or new == _FAILED:
        return
    copy = _up(new)
    _libc.madvise(copy, num_bytes, mmap.MADV_HUGEPAGE)
    ctypes.memmove(copy, start, num_bytes)
    # SELinux may forbid code that is in no file.
    may_run = _libc.mprotect(copy, num_bytes, mmap.PROT_READ | mmap.PROT_EXEC) == 0
    # The kernel replaces the old pages at once, so this may move the code that runs right now.
    if may_run and _libc.mremap(copy, num_bytes, num_bytes, _REPLACE, start) == start:
        _libc.munmap(new, copy - new)
        _libc.munmap(copy + num_bytes, new + room - copy - num_bytes)
    else:
        _libc.munmap(new, room)


def _has_huge_pages() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    try:
        return sys.platform.startswith("linux") and "[never]" not in setting.read_text()
    except OSError:
        return False


def _mappings() -> Iterator[tuple[int, int, str, str]]:
    """Yields start, stop, rights and name of each mapping of this process."""
    maps = Path("/proc/self/maps")
    if not sys.platform.startswith("linux") or not maps.exists():
        return
    for line in maps.read_text().splitlines():
        ends, rights, *_, name = [*line.split(maxsplit=5), ""][:6]
        start, stop = (int(end, 16) for end in ends.split("-"))
        yield start, stop, rights, name


def _up(address: int) -> int:
    """Returns the next beginning of a huge page."""
    return -(-address // HUGE_PAGE) * HUGE_PAGE


def _down(address: int) -> int:
    """Returns the beginning of the huge page of an address."""
    return address // HUGE_PAGE * HUGE_PAGE
