"""The command `lepton predict`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from lepton_train.command_types import count

_DTYPES = ("float32", "bfloat16", "float16", "int8")


def add(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `lepton`.

    Args:
        commands (any): what `add_subparsers` gave.
        command (callable): `command(commands, name, text, example)` makes a parser.
    """
    parser = command(
        commands,
        "predict",
        "Measure from how many zeros on a linear layer is faster sparse, on this machine.",
        "lepton predict 1536x576 576x1536 --rows 1 --dtype int8",
    )
    parser.add_argument("shape", nargs="+", type=_shape, help="a layer, as OUTxIN features")
    parser.add_argument("--rows", type=count, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="of stored values")
    parser.add_argument("--rounds", type=count, default=15, metavar="N", help="(default: 15)")
    parser.add_argument("--json", metavar="FILE", help="write the prediction as JSON to FILE")
    parser.set_defaults(run=_predict)


def _shape(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be OUTxIN, like 1536x576, got {text!r}")
    return int(found[1]), int(found[2])


def _predict(arguments: argparse.Namespace) -> int:
    import torch

    from lepton_train.files import write_json
    from lepton_train.predict import predict_sparsity

    prediction = predict_sparsity(
        arguments.shape,
        rows=arguments.rows,
        dtype=getattr(torch, arguments.dtype),
        rounds=arguments.rounds,
    )
    print(prediction)
    if arguments.json:
        print(f"wrote {write_json(arguments.json, prediction.to_dict())}")
    return 0
