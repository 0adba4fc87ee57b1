"""Before a launch on several machines: reach machine 0, in bounded time, and print the interface that leads there.

    python scripts/_reach.py RANK ADDRESS PORT SECONDS, such as 1 10.0.0.1 19001 600

Exit code 1 and a line that says why when it cannot be reached.
"""

from __future__ import annotations

import socket
import sys
import time

import psutil


def main(rank: int, address: str, port: int, seconds: float) -> int:
    try:
        own = resolve(address, port)
        if rank == 0:
            check_own(address, own, port)
        else:
            wait_for(address, port, seconds)
        print(interface_to(own, port))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def resolve(address: str, port: int) -> str:
    """The IPv4 address behind `address`."""
    try:
        return str(socket.getaddrinfo(address, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as error:
        raise OSError(
            f"MASTER_ADDR = {address!r} is no address and no name known here ({error.strerror})"
        ) from error


def check_own(address: str, resolved: str, port: int) -> None:
    """Raises OSError when this machine, RANK 0, cannot listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((resolved, port))
        except OSError as error:
            own = [
                a.address
                for of in psutil.net_if_addrs().values()
                for a in of
                if a.family == socket.AF_INET
            ]
            why = (
                f"port {port} is taken; set MASTER_PORT"
                if resolved in own
                else f"its own are {', '.join(own)}, and a floating or NAT address is none"
            )
            raise OSError(
                f"MASTER_ADDR = {address!r}: this machine, RANK 0, cannot listen there; {why}"
            ) from error


def wait_for(address: str, port: int, seconds: float) -> None:
    """Raises OSError when nothing has listened there for `seconds`."""
    deadline, said = time.monotonic() + seconds, ""
    while True:
        try:
            socket.create_connection(
                (address, port), timeout=max(0.1, min(5.0, deadline - time.monotonic()))
            ).close()
            return
        except OSError as error:
            why = error.strerror or str(error)
        if time.monotonic() >= deadline:
            raise OSError(
                f"nothing answered at MASTER_ADDR = {address!r}, MASTER_PORT = {port} in {seconds:g} s ({why}): is it "
                "the address of RANK 0, is the script running there, is the port open?"
            )
        if why != said:
            print(
                f"waiting for RANK 0 at {address}:{port} for up to {seconds:g} s ({why})",
                file=sys.stderr,
            )
            said = why
        time.sleep(0.5)


def interface_to(address: str, port: int) -> str:
    """The name of the interface whose address the way there begins with."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))
        local = probe.getsockname()[0]
    return next(
        name for name, of in psutil.net_if_addrs().items() if any(a.address == local for a in of)
    )


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    sys.exit(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
