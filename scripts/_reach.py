"""Before a launch on several machines: reach machine 0, and print the network interface to it.

    python scripts/_reach.py RANK ADDRESS PORT SECONDS, such as 1 10.0.0.1 19001 600

Ends with exit code 1 and the reason when machine 0 cannot be reached within SECONDS.
"""

from __future__ import annotations

import socket
import sys
import time

import psutil


def main(rank: int, address: str, port: int, seconds: float) -> int:
    try:
        resolved = resolve(address, port)
        if rank == 0:
            check_can_listen(address, resolved, port)
        else:
            wait_for(address, port, seconds)
        print(interface_to(resolved, port))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def resolve(address: str, port: int) -> str:
    """The IPv4 address of `address`."""
    try:
        return str(socket.getaddrinfo(address, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as error:
        message = f"MASTER_ADDR = {address!r} is no address and no name known here"
        raise OSError(f"{message} ({error.strerror})") from error


def check_can_listen(address: str, resolved: str, port: int) -> None:
    """Raises OSError when this machine, RANK 0, cannot listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((resolved, port))
        except OSError as error:
            local = [each for _, each in interfaces()]
            reason = f"its own are {', '.join(local)}, and a floating or NAT address is none"
            if resolved in local:
                reason = f"port {port} is taken; set MASTER_PORT"
            message = f"MASTER_ADDR = {address!r}: this machine, RANK 0, cannot listen there"
            raise OSError(f"{message}; {reason}") from error


def wait_for(address: str, port: int, seconds: float) -> None:
    """Raises OSError when nothing has listened there for `seconds`."""
    deadline, printed = time.monotonic() + seconds, ""
    while True:
        timeout = max(0.1, min(5.0, deadline - time.monotonic()))
        try:
            socket.create_connection((address, port), timeout).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() >= deadline:
            raise OSError(
                f"nothing answered at MASTER_ADDR = {address!r}, MASTER_PORT = {port} in "
                f"{seconds:g} s ({reason}): is it the address of RANK 0, is the script running "
                "there, is the port open?"
            )
        if reason != printed:
            limit = f"for up to {seconds:g} s ({reason})"
            print(f"waiting for RANK 0 at {address}:{port} {limit}", file=sys.stderr)
            printed = reason
        time.sleep(0.5)


def interface_to(address: str, port: int) -> str:
    """The name of the interface that traffic to `address` leaves by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))
        local = probe.getsockname()[0]
    return next(name for name, each in interfaces() if each == local)


def interfaces() -> list[tuple[str, str]]:
    """(interface, address) for each IPv4 address of this machine."""
    table = psutil.net_if_addrs().items()
    return [(name, a.address) for name, of in table for a in of if a.family == socket.AF_INET]


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    sys.exit(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
