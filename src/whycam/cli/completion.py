"""Shell completion, written from the parser itself, so that it knows every command and option there is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One option: ``--out``; what it is for; whether a value follows, and which values there are (None: any)."""

    flags: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...] | None


@dataclass(frozen=True)
class Command:
    """One command, its options, and the words that may stand as its first argument (None: files)."""

    name: str
    help: str
    options: tuple[Option, ...]
    words: tuple[str, ...] | None


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a shell: bash, zsh or fish."""
    return SHELLS[shell](parser.prog, describe(parser))


def describe(parser: argparse.ArgumentParser) -> list[Command]:
    """The commands of a parser whose only positional argument chooses one."""
    found = []
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, sub in action.choices.items():
            positional = next((a for a in sub._actions if not a.option_strings and a.choices), None)
            words = None if positional is None else tuple(map(str, positional.choices or ()))
            options = tuple(_option(a) for a in sub._actions if a.option_strings)
            found.append(Command(name, helps.get(name, ""), options, words))
    return found


def _option(action: argparse.Action) -> Option:
    choices = None if action.choices is None else tuple(map(str, action.choices))
    text = "" if action.help is None else " ".join(action.help.split())
    return Option(tuple(action.option_strings), text, action.nargs != 0, choices)


def _bash(prog: str, commands: list[Command]) -> str:
    cases = []
    for command in commands:
        flags = " ".join(flag for option in command.options for flag in option.flags)
        cases.append(f'    {command.name}) flags="{flags}"; words="{" ".join(command.words or ())}" ;;')
    names = " ".join(command.name for command in commands)
    lines = [
        f"# bash completion for {prog}. To use it: source <({prog} completion bash)",
        f"_{prog}() {{",
        '  local current=${COMP_WORDS[COMP_CWORD]} flags="" words=""',
        "  if [[ $COMP_CWORD -eq 1 ]]; then",
        f'    COMPREPLY=($(compgen -W "{names} --help --version" -- "$current"))',
        "    return",
        "  fi",
        "  case ${COMP_WORDS[1]} in",
        *cases,
        "  esac",
        "  if [[ $current == -* ]]; then words=$flags; fi",
        "  # Where nothing is offered here, readline offers files.",
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        f"complete -o default -F _{prog} {prog}",
    ]
    return "\n".join(lines) + "\n"


def _zsh(prog: str, commands: list[Command]) -> str:
    lines = [
        f"#compdef {prog}",
        f"# zsh completion for {prog}. To use it: source <({prog} completion zsh)",
        f"_{prog}() {{",
        "  local -a commands=(",
        *(f"    {_zsh_quoted(command.name + ':' + command.help)}" for command in commands),
        "  )",
        "  if (( CURRENT == 2 )); then",
        "    _describe command commands",
        "    return",
        "  fi",
        "  local command=$words[2]",
        "  shift words",
        "  (( CURRENT-- ))",
        "  case $command in",
    ]
    for command in commands:
        specs = [_zsh_option(option, flag) for option in command.options for flag in option.flags]
        specs.append(_zsh_quoted("*:file:" + (f"({' '.join(command.words)})" if command.words else "_files")))
        lines += [f"    {command.name})", "      _arguments \\"]
        lines += [f"        {spec} \\" for spec in specs[:-1]]
        lines += [f"        {specs[-1]}", "      ;;"]
    lines += [
        "  esac",
        "}",
        f'if [[ $funcstack[1] == _{prog} ]]; then _{prog} "$@"; else compdef _{prog} {prog}; fi',
    ]
    return "\n".join(lines) + "\n"


def _zsh_option(option: Option, flag: str) -> str:
    text = option.help
    for special in "\\[]:":
        text = text.replace(special, "\\" + special)
    spec = f"*{flag}[{text}]"
    if option.takes_value:
        spec += ":value:" + (f"({' '.join(option.choices)})" if option.choices else "_files")
    return _zsh_quoted(spec)


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish(prog: str, commands: list[Command]) -> str:
    lines = [
        f"# fish completion for {prog}. To use it: {prog} completion fish | source",
        f"complete -c {prog} -n __fish_use_subcommand -f",
        f"complete -c {prog} -n __fish_use_subcommand -l help -d {_fish_quoted('show the commands')}",
        f"complete -c {prog} -n __fish_use_subcommand -l version -d {_fish_quoted('show the version')}",
    ]
    for command in commands:
        lines.append(
            f"complete -c {prog} -n __fish_use_subcommand -f -a {command.name} -d {_fish_quoted(command.help)}"
        )
        inside = f"complete -c {prog} -n '__fish_seen_subcommand_from {command.name}'"
        if command.words:
            lines.append(f"{inside} -f -a {_fish_quoted(' '.join(command.words))}")
        for option in command.options:
            flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            value = " -r" if option.takes_value else ""
            value += f" -f -a {_fish_quoted(' '.join(option.choices))}" if option.choices else ""
            lines.append(f"{inside} {flags}{value} -d {_fish_quoted(option.help)}")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[str, list[Command]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
