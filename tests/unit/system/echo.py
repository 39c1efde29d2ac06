"""A process that gives back what it is sent."""

from __future__ import annotations

import subprocess
from multiprocessing.connection import Connection


def main(fd: int) -> None:
    connection = Connection(fd)
    try:
        while True:
            message = connection.recv()
            if message == "start a program and terminate it":
                program = subprocess.Popen(["sleep", "100"])
                program.terminate()
                message = program.wait()
            connection.send(message)
    except EOFError:
        pass
