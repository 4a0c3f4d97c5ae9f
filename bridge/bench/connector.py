"""Opens and resets TCP connections one after the other, as a process of its own.

    python -m bridge.bench.connector CLIENT_NAMESPACE SERVER_NAMESPACE ADDRESS CPU SECONDS

Both ends are in this process, which stays on one processor; each packet crosses the wire between
the namespaces within the system call that sends it. Prints an object with "connections", "seconds"
and "cpu_seconds".
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time

from bridge.demo.traffic_worker import enter_namespace

PORT = 7001
_LINGER_RESET = struct.pack("ii", 1, 0)  # close() sends RST, so that no TIME_WAIT keeps the port


def connect(address: str, seconds: float, listener: socket.socket) -> dict[str, float]:
    count = 0
    used, began = time.process_time(), time.monotonic()
    while time.monotonic() - began < seconds:
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        client.connect((address, PORT))
        accepted, _ = listener.accept()
        client.close()
        accepted.close()
        count += 1
    return {
        "connections": count,
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time() - used,
    }


def main() -> None:
    client, server, address, cpu, seconds = sys.argv[1:]
    os.sched_setaffinity(0, [int(cpu)])
    enter_namespace(server)
    with socket.create_server((address, PORT), backlog=16) as listener:
        enter_namespace(client)
        print(json.dumps(connect(address, float(seconds), listener)))


if __name__ == "__main__":
    main()
