"""A server for scorers in another process, on another GPU or on another machine.

    python -m reward_models.server --scorers '{"general_ocr": {}, "geneval": {"scoring": "fixed"}}'

A run's config then names {"geneval": {"remote": "http://127.0.0.1:8090"}}: docs/reward_server.md.
"""

from __future__ import annotations

import argparse
import errno
import ipaddress
import json
import logging
import math
import os
import socket
from collections.abc import Sequence
from typing import Any

from reward_models import build, compares, compares_groups, terminal
from reward_models.loading import expanded
from reward_models.wire import MEBIBYTE

TOKEN_VARIABLE = "REWARD_TOKEN"
TOKEN_LENGTH = 16
NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
EXAMPLE = """as in --scorers '{"general_ocr": {}}'"""


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: str = "") -> str:
    """The token of the file, else of the environment's REWARD_TOKEN, else "".

    Raises ValueError for a weak token.
    """
    source = file or f"the environment's {TOKEN_VARIABLE}"
    try:
        token = expanded(file).read_text("utf-8") if file else os.environ.get(TOKEN_VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the token file cannot be read: {error}") from error
    token = token.strip()
    weak = len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable()
    if (file or token) and weak:
        raise ValueError(
            f"the token of {source} must be one line of {TOKEN_LENGTH} or more ASCII characters; "
            'make one with python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token


def check_binding(host: str, token: str) -> None:
    """Raises ValueError if other machines could reach the server without a token."""
    if not token and not is_loopback(host):
        raise ValueError(
            f"--host {host} opens the server to other machines, so it needs a token: --token-file "
            f"or the environment's {TOKEN_VARIABLE}; without one it binds to 127.0.0.1 only"
        )


def read_scorers(text: str) -> dict[str, dict[str, Any]]:
    """{name: options} from JSON. Raises ValueError for anything else."""
    try:
        scorers = json.loads(text)
    except ValueError as error:
        message = f"--scorers is not JSON ({error}); it takes names with options, {EXAMPLE}"
        raise ValueError(message) from error
    names = isinstance(scorers, dict) and scorers
    if not names or not all(isinstance(options, dict) for options in scorers.values()):
        raise ValueError(
            f"--scorers = {text} must be an object of names with their options, {EXAMPLE}"
        )
    return scorers


def check_single(compared: Sequence[str]) -> None:
    """Raises ValueError for the scorers that compare the images of a group, by name."""
    if compared:
        raise ValueError(
            f"--scorers: {compared[0]!r} compares the images of a group, and requests name no "
            "groups; such a scorer runs in the process of the training, without `remote`"
        )


def check_address(host: str, port: int) -> None:
    """Raises ValueError unless a server can bind to the address; scorers take minutes to build."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} must lie in 0 .. 65535")
    try:
        infos = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        failures = [error for info in infos if (error := _bind(info))]
        # A host may have an IPv6 address on a machine without IPv6; the other one serves.
        serious = [error for error in failures if error.errno not in NOT_HERE]
        if serious or len(failures) == len(infos):
            raise (serious or failures)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"the server cannot bind to --host {host} --port {port}: {reason}"
        ) from error


def _bind(info: tuple[Any, ...]) -> OSError | None:
    """What hinders a server, as uvicorn starts one, from binding to an answer of getaddrinfo."""
    family, kind, protocol, _, address = info
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as error:
        return error
    return None


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    program, summary = "python -m reward_models.server", "Serve scorers over HTTP."
    parser = argparse.ArgumentParser(prog=program, description=summary)
    add = parser.add_argument
    add("--scorers", required=True, help="""JSON, {"name": {options}, ...}""")
    add("--host", default="127.0.0.1", help="address to bind to (default: this machine only)")
    add("--port", type=int, default=8090)
    add("--token-file", default="", help=f"file with the token (default: ${TOKEN_VARIABLE})")
    add("--max-body", type=float, default=256, metavar="MB", help="largest body (default: 256)")
    grace = "seconds to finish work after SIGTERM (default: 30)"
    add("--grace", type=int, default=30, metavar="S", help=grace)
    add("--queue", type=int, default=256, help="requests held at once (default: 256)")
    return parser.parse_args(argv), parser


def main(argv: Sequence[str] | None = None) -> None:
    """Build the scorers and serve them until SIGTERM or Ctrl-C; running batches are finished."""
    terminal.accept_any_text()
    args, parser = parse(argv)
    try:
        token = read_token(args.token_file)
        check_binding(args.host, token)
        options = read_scorers(args.scorers)
        if not 0 < args.max_body < math.inf or args.queue < 1:
            limits = f"--max-body {args.max_body:g} and --queue {args.queue}"
            raise ValueError(f"{limits} must be finite and above 0")
        if args.grace < 0:
            raise ValueError(f"--grace {args.grace} must be a number of seconds, of at least 0")
        try:
            import uvicorn

            from reward_models.service import create_app
        except ImportError as error:
            install = "pip install 'tp_grpo[server]'"
            raise ValueError(f"the server's packages are missing ({error}): {install}") from error
        check_single(compares_groups(options))
        check_address(args.host, args.port)
        scorers = {name: build(name, **chosen) for name, chosen in options.items()}
        check_single([name for name, scorer in scorers.items() if compares(scorer)])
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    access = "a token is required" if token else "no token is required"
    logging.getLogger(__name__).info("scorers: %s; %s", ", ".join(scorers), access)
    max_body = int(args.max_body * MEBIBYTE)
    uvicorn.run(
        create_app(scorers, options, token=token, max_body=max_body, queue=args.queue),
        host=args.host,
        port=args.port,
        # h11 reads and discards what a client still sends after a refusal, so that the client
        # receives the refusal.
        http="h11",
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=args.grace,
    )


if __name__ == "__main__":
    main()
