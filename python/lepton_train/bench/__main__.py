"""`python -m lepton_train.bench FAMILY [--json FILE] [options]`, without the command line."""

import sys

from lepton_train.bench import FAMILIES, run


def main(arguments: list[str]) -> int:
    """Split off the two arguments that `run` takes by name."""
    named = arguments and not arguments[0].startswith("-")
    family = arguments.pop(0) if named else next(iter(FAMILIES))
    json_path = None
    if "--json" in arguments:
        place = arguments.index("--json")
        json_path = arguments[place + 1] if place + 1 < len(arguments) else None
        del arguments[place : place + 2]
    return run(family, json_path, "cpu", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
