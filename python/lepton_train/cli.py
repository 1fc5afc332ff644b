"""The command `lepton`: info, demo, bench, predict, train, eval, compress, bundle, serve."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_kernels import __version__
from lepton_train import bundle_commands, predict_command, serve_command, training_commands
from lepton_train.command_types import count

FAILED = 1
BAD_ARGUMENTS = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lepton",
        description="Make PyTorch models smaller and faster.",
        epilog="example: lepton demo --json demo.json --out demo/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lepton-kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_info(commands)
    _add_demo(commands)
    _add_bench(commands)
    predict_command.add(commands, _command)
    training_commands.add(commands, _command)
    bundle_commands.add(commands, _command)
    serve_command.add(commands, _command)
    return parser


def _command(commands: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--debug", action="store_true", help="show the trace of an error")
    return command


def _add_info(commands: Any) -> None:
    command = _command(
        commands, "info", "Show backends, instruction sets and versions.", "lepton info --json"
    )
    command.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="write JSON to FILE, or to standard output if FILE is left out",
    )
    command.set_defaults(run=_info)


def _add_demo(commands: Any) -> None:
    command = _command(
        commands,
        "demo",
        "Quantise a real text encoder and compare it with torch: speed, size, score.",
        "lepton demo --json demo.json --out demo/",
    )
    command.add_argument(
        "--model", metavar="PATH", help="Hugging Face folder (default: all-MiniLM-L6-v2)"
    )
    command.add_argument("--json", metavar="FILE", help="write the report as JSON to FILE")
    command.add_argument("--out", metavar="DIR", help="write demo.png and demo.json into DIR")
    command.add_argument(
        "--batch", type=count, default=32, metavar="N", help="texts in a batch (default: 32)"
    )
    command.add_argument(
        "--rounds", type=count, default=11, metavar="N", help="timed rounds (default: 11)"
    )
    command.set_defaults(run=_demo)


def _add_bench(commands: Any) -> None:
    command = _command(
        commands,
        "bench",
        "Measure a kernel family against its peers and the machine's ceilings.",
        "lepton bench int8_linear --json int8_linear.json",
    )
    command.add_argument(
        "family",
        nargs="?",
        default="int8_linear",
        metavar="FAMILY",
        help="kernel family (default: int8_linear)",
    )
    command.add_argument("--json", metavar="FILE", help="write the rows as JSON to FILE")
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    command.set_defaults(run=_bench, takes_options=True)


def _info(arguments: argparse.Namespace) -> int:
    import lepton_kernels as lk

    info = lk.info()
    if arguments.json == "-":
        print(json.dumps(info, indent=2))
        return 0
    if arguments.json:
        from lepton_train.files import write_json

        write_json(arguments.json, info)
        return 0
    for key, value in info.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        elif isinstance(value, dict):
            value = ", ".join(f"{name} {what}" for name, what in value.items())
        print(f"{key.replace('_', ' '):16} {value}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from lepton_train.demo import run_demo
    from lepton_train.demo_output import print_table, write_chart
    from lepton_train.files import write_json
    from lepton_train.packages import require

    # Minutes of measuring must not end in a message about a missing package.
    require("rich", "lepton demo")
    require("safetensors", "lepton demo")
    if arguments.out:
        require("matplotlib", "lepton demo --out")
    result = run_demo(arguments.model, batch=arguments.batch, rounds=arguments.rounds)
    print_table(result)
    if arguments.json:
        print(f"wrote {write_json(arguments.json, result)}")
    if arguments.out:
        folder = Path(arguments.out)
        print(f"wrote {write_json(folder / 'demo.json', result)}")
        print(f"wrote {write_chart(result, folder / 'demo.png')}")
    return 0 if result["keeps_score"] else FAILED


def _bench(arguments: argparse.Namespace) -> int:
    from lepton_train.bench import run

    return run(arguments.family, arguments.json, arguments.device, arguments.options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv (sequence of str, optional): arguments. Default: None (those of the process).

    Returns:
        int: 0; 1 if the work failed, with one line on standard error; bad arguments end the
        process with status 2.

    Example:
        >>> main(["info", "--json", "/dev/null/no"])
        1
    """
    parser = _parser()
    arguments, options = parser.parse_known_args(argv)
    if options and not getattr(arguments, "takes_options", False):
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    arguments.options = [option for option in options if option != "--"]
    try:
        status: int = arguments.run(arguments)
        return status
    except KeyboardInterrupt:
        print("lepton: interrupted", file=sys.stderr)
        return FAILED
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        else:
            line = " ".join(str(error).split()) or type(error).__name__
            print(f"lepton {arguments.command}: {line}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
