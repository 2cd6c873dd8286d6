"""One door to what is no target of Snakemake: python -m workflow_scripts COMMAND …"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

from workflow_scripts.errors import UserError

COMMANDS = {
    "plan": ("estimate.show", "the stale jobs, one line each: why, and with history how many Wh and minutes"),
    "forecast": ("estimate.forecast", "predicted energy, time and carbon of the stale jobs"),
    "bill": ("accounting.bill", "what all the work in a results folder has cost to date, useful or not"),
    "memory": ("estimate.memory", "accelerators, memory and hours that every stage of an experiment needs"),
    "compare": ("stages.comparison", "experiments side by side, with break-even, Pareto front and figures"),
    "import": ("importers.import_runs", "run folders of the first system as experiments that can be compared"),
    "recover": ("energy.recover", "records of stages whose meter was killed, from their ledgers"),
}


def main(arguments: list[str]) -> int:
    """Hand the arguments after the command to its module, which alone is imported; 2 for a command that there is not."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print("usage: python -m workflow_scripts COMMAND …    (COMMAND --help says more)\n")
        print("\n".join(f"  {command:9} {purpose}" for command, (_, purpose) in COMMANDS.items()))
        return 0
    if name not in COMMANDS:
        print(f"error: {name!r} is no command, there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, purpose = f"workflow_scripts.{COMMANDS[name][0]}", COMMANDS[name][1]
    if rest[:1] in (["-h"], ["--help"]):
        print(f"python -m workflow_scripts {name}: {purpose}\n\n{_description(module)}")
        return 0
    try:
        code: int = importlib.import_module(module).main(rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return code


def _description(module: str) -> str:
    """The docstring of a module, its command line in it; the module is not imported."""
    found = importlib.util.find_spec(module)
    source = Path(found.origin).read_text(encoding="utf-8") if found is not None and found.origin else ""
    return ast.get_docstring(ast.parse(source)) or ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
