"""A terminal for tests: runs a program on one, and tells what its screen shows at the end."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios

_CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r\n|[\r\n]|[^\x1b\r\n]+")


def run_on_terminal(program: str, *arguments: str, columns: int = 80) -> bytes:
    """Runs Python code on a terminal of 24 lines; returns what it writes, with control codes."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "PYTHONPATH": os.getcwd()}
        os.environ |= {"COLUMNS": str(columns), "LINES": "24"}
        os.execv(sys.executable, [sys.executable, "-c", program, *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = b""
    with contextlib.suppress(OSError):  # how a terminal ends
        while part := os.read(terminal, 4096):
            written += part
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0, written
    return written


class _Screen:
    """What a terminal of a width shows; knows the few codes that rich uses."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0

    def control(self, parameter: str, code: str) -> None:
        """Moves up, or erases a line; colors and the look of the cursor change no text."""
        assert code in "AKmhl", code
        if code == "A":
            self.row = max(self.row - int(parameter or 1), 0)
        elif code == "K":
            self.lines[self.row] = ""

    def next_line(self) -> None:
        self.row, self.column = self.row + 1, 0
        self.lines += [""] * (self.row + 1 - len(self.lines))

    def write(self, text: str) -> None:
        for letter in text:
            if self.column == self.columns:
                self.next_line()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1


def screen(written: bytes, columns: int) -> list[str]:
    """Returns the lines that a terminal shows, including those that have scrolled away."""
    shown = _Screen(columns)
    for code in _CODE.finditer(written.decode()):
        if code[2]:
            shown.control(code[1], code[2])
        elif code[0] == "\r":
            shown.column = 0
        elif code[0].startswith(("\r", "\n")):
            shown.next_line()
        else:
            shown.write(code[0])
    return [line.rstrip() for line in shown.lines]
