"""A link between two network namespaces that delays each frame and loses some.

Linux has `netem` for this, which not every kernel is built with. Here a process stands between two
TAP devices, one on either side, and passes frames on later:

    TAP outside  --frame-->  [due in 50 ms, one in 100 dropped]  --frame-->  TAP inside
"""

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time

DELAY_SECONDS = 0.05
LOST_SHARE = 0.01
_TUNSETIFF = 0x400454CA
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
_MAX_FRAME = 65_535


class SlowLink:
    """Passes frames on until it is closed.

    Args:
        outside: Name of the device here.
        inside: Name of the device in the other namespace.
        process: A process of the other namespace.
    """

    def __init__(self, outside: str, inside: str, process: int) -> None:
        self.passed = self.lost = 0
        self._random = random.Random(0)
        self._outside, self._inside = _tap(outside), _tap(f"{outside}i")
        subprocess.run(
            ["ip", "link", "set", f"{outside}i", "name", inside, "netns", str(process)], check=True
        )
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._pass_on, daemon=True, name=outside)
        self._thread.start()

    def close(self) -> None:
        """Ends the link."""
        if not self._is_closed.is_set():
            self._is_closed.set()
            self._thread.join()
            os.close(self._outside)
            os.close(self._inside)

    def _pass_on(self) -> None:
        other = {self._outside: self._inside, self._inside: self._outside}
        waiting: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self._is_closed.is_set():
            timeout = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else 0.2
            for device in select.select(list(other), [], [], min(timeout, 0.2))[0]:
                frame = _read(device)
                if frame and self._random.random() >= LOST_SHARE:
                    number += 1
                    due = time.monotonic() + DELAY_SECONDS
                    heapq.heappush(waiting, (due, number, other[device], frame))
                elif frame:
                    self.lost += 1
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, device, frame = heapq.heappop(waiting)
                self.passed += 1
                try:
                    os.write(device, frame)
                except OSError:  # the device is down
                    self.lost += 1


def _read(device: int) -> bytes:
    try:
        return os.read(device, _MAX_FRAME)
    except OSError:  # the device is down
        time.sleep(0.01)
        return b""


def _tap(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER)
    fcntl.ioctl(device, _TUNSETIFF, request)
    return device
