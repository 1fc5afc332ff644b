"""`lepton serve`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `lepton`.

    Args:
        commands: what `add_subparsers` gave.
        command (callable): makes one command from its name, a text and an example.
    """
    serve = command(
        commands,
        "serve",
        "Serve a bundle over HTTP, with limits and Prometheus metrics.",
        "lepton serve model/ --port 8000 --max-batch 32",
    )
    serve.add_argument("path", metavar="FOLDER", help="the bundle")
    serve.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    serve.add_argument("--port", type=_port, default=8000, help="port, 0: any (default: 8000)")
    serve.add_argument("--digest", metavar="SHA256", help="what saving the bundle gave")
    for flag, kind, default, text in (
        ("--max-bytes", int, 4 << 20, "size of a request at most"),
        ("--max-batch", int, 64, "samples in a request at most"),
        ("--max-waiting", int, 32, "requests waiting at most"),
        ("--read-seconds", float, 10.0, "time for a request to arrive"),
        ("--run-seconds", float, 30.0, "time for an answer"),
    ):
        serve.add_argument(
            flag, type=_above_zero(kind), default=default, metavar="N",
            help=f"{text} (default: {default})",
        )  # fmt: skip
    serve.set_defaults(run=_serve)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, got {text!r}")
    return int(text)


def _above_zero(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
        return value

    return parse


def _serve(arguments: argparse.Namespace) -> int:
    from lepton_train.serve import Limits, serve

    limits = Limits(
        max_bytes=arguments.max_bytes,
        max_batch=arguments.max_batch,
        max_waiting=arguments.max_waiting,
        read_seconds=arguments.read_seconds,
        run_seconds=arguments.run_seconds,
    )
    serve(
        arguments.path,
        host=arguments.host,
        port=arguments.port,
        limits=limits,
        digest=arguments.digest,
    )
    return 0
