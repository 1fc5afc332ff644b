"""`lepton bundle show|verify`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from lepton_train.files import write_json

FAILED = 1


def add(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `lepton`.

    Args:
        commands: what `add_subparsers` gave.
        command (callable): makes one command from its name, a text and an example.
    """
    bundle = command(
        commands, "bundle", "Look into a bundle, or check it.", "lepton bundle verify model/"
    )
    actions = bundle.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = command(
        actions, "show", "Show what a bundle holds and needs.", "lepton bundle show model/ --json"
    )
    show.set_defaults(run=_show)
    verify = command(
        actions,
        "verify",
        "Check a bundle's files, whether it fits this machine, and its golden outputs.",
        "lepton bundle verify model/ --digest 3f5a...",
    )
    verify.add_argument("--digest", metavar="SHA256", help="what saving the bundle gave")
    verify.set_defaults(run=_verify)
    for each in (show, verify):
        each.add_argument("path", metavar="FOLDER", help="the bundle")
        each.add_argument(
            "--json",
            metavar="FILE",
            nargs="?",
            const="-",
            help="write JSON to FILE, or to standard output if FILE is left out",
        )


def _show(arguments: argparse.Namespace) -> int:
    from lepton_train.bundle.folder import open_folder
    from lepton_train.bundle.show import as_text

    contents = open_folder(arguments.path)
    if arguments.json:
        values = contents.manifest.model_dump() | {"digest": contents.digest}
        _write(arguments.json, values)
    else:
        print(as_text(contents))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from lepton_train import bundle

    found = bundle.verify(arguments.path, digest=arguments.digest)
    if arguments.json:
        _write(arguments.json, found.to_dict())
    else:
        print(found)
        print(f"digest {found.digest}")
    return 0 if found.ok else FAILED


def _write(target: str, values: dict[str, Any]) -> None:
    if target == "-":
        print(json.dumps(values, indent=2, allow_nan=False))
    else:
        write_json(target, values)
