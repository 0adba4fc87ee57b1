"""A server for scorers that live in another process, on another GPU or on another machine.

    python -m reward_models.server --scorers '{"general_ocr": {}, "geneval": {"scoring": "fixed"}}'

The run's config then says {"geneval": {"remote": "http://127.0.0.1:8090"}}. docs/reward_server.md tells the rest.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_models import build
from reward_models.wire import MEBIBYTE

TOKEN_VARIABLE = "REWARD_TOKEN"
TOKEN_LENGTH = 16
GRACE_SECONDS = 30  # for batches in work when the server is told to stop


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: str = "") -> str:
    """The token of the file, else of the environment's REWARD_TOKEN, else "". Raises ValueError for a weak one."""
    token, source = (
        os.environ.get(TOKEN_VARIABLE, "").strip(),
        f"the environment's {TOKEN_VARIABLE}",
    )
    if file:
        try:
            token, source = Path(file).read_text().strip(), file
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the token file cannot be read: {error}") from error
    if (file or token) and (
        len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable()
    ):
        raise ValueError(
            f"the token of {source} must be one line of {TOKEN_LENGTH} or more ASCII characters; make one with "
            f'python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token


def check_binding(host: str, token: str) -> None:
    """Raises ValueError when other machines could reach the server and no token would be asked for."""
    if not token and not is_loopback(host):
        raise ValueError(
            f"--host {host} opens the server to other machines, so it needs a token: --token-file or the environment's "
            f"{TOKEN_VARIABLE}; without one it binds to 127.0.0.1 only"
        )


def read_scorers(text: str) -> dict[str, dict[str, Any]]:
    """{name: options} from JSON. Raises ValueError for anything else."""
    example = """as in --scorers '{"general_ocr": {}}'"""
    try:
        scorers = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"--scorers is not JSON ({error}); it takes names with options, {example}"
        ) from error
    if (
        not isinstance(scorers, dict)
        or not scorers
        or not all(isinstance(given, dict) for given in scorers.values())
    ):
        raise ValueError(
            f"--scorers = {text} must be an object of names with their options, {example}"
        )
    return scorers


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        prog="python -m reward_models.server", description="Serve scorers over HTTP."
    )
    parser.add_argument("--scorers", required=True, help="""JSON, {"name": {options}, ...}""")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind to (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument(
        "--token-file", default="", help=f"file with the bearer token (default: ${TOKEN_VARIABLE})"
    )
    parser.add_argument(
        "--max-body",
        type=float,
        default=256,
        metavar="MB",
        help="largest body taken (default: 256)",
    )
    parser.add_argument(
        "--queue", type=int, default=256, help="requests held before 503 is answered (default: 256)"
    )
    return parser.parse_args(argv), parser


def main(argv: Sequence[str] | None = None) -> None:
    """Build the scorers and serve them until SIGTERM or Ctrl-C; batches in work are finished first."""
    args, parser = parse(argv)
    try:
        token = read_token(args.token_file)
        check_binding(args.host, token)
        given = read_scorers(args.scorers)
        if args.max_body <= 0 or args.queue < 1:
            raise ValueError(
                f"--max-body {args.max_body:g} and --queue {args.queue} must be above 0"
            )
        try:
            import uvicorn

            from reward_models.service import create_app
        except ImportError as error:
            raise ValueError(
                f"the server's packages are missing ({error}): pip install 'tp_grpo[server]'"
            ) from error
        scorers = {name: build(name, **options) for name, options in given.items()}
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    asked = "a token is asked for" if token else "no token is asked for"
    logging.getLogger(__name__).info("scorers: %s; %s", ", ".join(scorers), asked)
    app = create_app(
        scorers, given, token=token, max_body=int(args.max_body * MEBIBYTE), queue=args.queue
    )
    uvicorn.run(
        app,
        host=args.host,
        port=args.port,
        # h11 reads on, and throws away, what a client still sends after a refusal: the client gets to see the sentence.
        http="h11",
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    main()
