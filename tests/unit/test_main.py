"""The door `python -m workflow_scripts`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from workflow_scripts.__main__ import COMMANDS, main

HERE = [name for name, (module, _) in COMMANDS.items() if importlib.util.find_spec(f"workflow_scripts.{module}")]


@pytest.mark.parametrize("name", HERE)
def test_help_says_what_a_command_is_for_and_how_it_is_called(name, capsys) -> None:
    """In its first line, and without importing the command's module."""
    module = f"workflow_scripts.{COMMANDS[name][0]}"
    assert main([name, "--help"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"python -m workflow_scripts {name}: {COMMANDS[name][1]}"
    assert any(line.startswith("    python -m workflow_scripts") for line in rest)
    assert callable(importlib.import_module(module).main)


def test_help_lists_the_commands(capsys) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    assert main([]) == 0


def test_an_unknown_command_is_refused_in_one_line(capsys) -> None:
    assert main(["bil", "results"]) == 2
    assert capsys.readouterr().err == f"error: 'bil' is no command, there are {', '.join(COMMANDS)}\n"


def test_arguments_go_to_the_command_and_its_exit_code_comes_back(tmp_path, capsys) -> None:
    """In a process of its own, as no other command's modules may be loaded."""
    assert main(["bill", str(tmp_path)]) == 1
    assert f"no attempt under {tmp_path}/state" in capsys.readouterr().err
    code = "import sys; from workflow_scripts.__main__ import main; print(main(sys.argv[1:]), *sys.modules)"
    words = [sys.executable, "-c", code, "recover", str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    code, *modules = result.stdout.split()
    assert (code, result.stderr) == ("1", f"no attempts below {tmp_path}\n")
    assert not {"torch", "pandas", "transformers"} & set(modules)
