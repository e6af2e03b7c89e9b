"""Completion as the shells themselves do it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from whycam.cli.completion import SHELLS, describe, script
from whycam.cli.main import build_parser


def shell(name, code):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
    result = subprocess.run([path, *flags, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.split("\n")


def test_it_knows_what_the_parser_knows():
    commands = {command.name: command for command in describe(build_parser())}
    assert {"demo", "study", "train", "serve", "completion"} <= set(commands)
    assert all(command.help for command in commands.values())
    flags = {flag for option in commands["study"].options for flag in option.flags}
    assert {"--out", "--layers", "--methods", "--json", "--help", "-h"} <= flags
    assert commands["completion"].words == ("bash", "zsh", "fish")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["whycam", "tr"], {"train"}),
        (["whycam", "s"], {"summary", "study", "serve"}),
        (["whycam", "study", "--la"], {"--layers"}),
        (["whycam", "study", "a", "b", "--meth"], {"--methods"}),
        (["whycam", "completion", ""], {"bash", "zsh", "fish"}),
        (["whycam", "study", ""], set()),  # files
    ],
)
def test_bash_offers(words, expected):
    listed = " ".join(f"'{word}'" for word in words)
    code = f"""{script(build_parser(), "bash")}
COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _whycam; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    assert {word for word in shell("bash", code) if word} == expected


def test_fish_offers():
    code = script(build_parser(), "fish")
    offered = {line.split("\t")[0] for line in shell("fish", f"{code}\ncomplete -C 'whycam s'")}
    assert {"summary", "study", "serve"} <= offered
    offered = {line.split("\t")[0] for line in shell("fish", f"{code}\ncomplete -C 'whycam study --la'")}
    assert "--layers" in offered


def test_zsh_accepts_it():
    code = script(build_parser(), "zsh")
    assert shell("zsh", f"autoload -Uz compinit; compinit -u -D; {code}\nprint $_comps[whycam]")[0] == "_whycam"


@pytest.mark.parametrize("name", SHELLS)
def test_quotes_in_help_stay_help(name):
    parser = build_parser()
    action = next(action for action in parser._actions if action.dest == "command")
    action._choices_actions[0].help = 'it\'s $(touch hacked) `x` [a]: \\ "b"'
    assert "hacked" not in "".join(shell(name, "true"))
    code = script(parser, name)
    setup = "autoload -Uz compinit; compinit -u -D; " if name == "zsh" else ""
    shell(name, f"cd /; {setup}{code}")
