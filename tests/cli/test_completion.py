"""Completion as the shells themselves do it: each test presses Tab in a real shell with ``whycam`` on its PATH."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from whycam.cli.completion import SHELLS, script
from whycam.cli.main import main

PROGRAM = f"#!{sys.executable}\nimport sys\nfrom whycam.cli.main import main\nsys.exit(main())\n"
FLAGS = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}
# What one Tab offers, from the line to the left of the cursor.
OFFERS = [
    ("whycam tr", {"train"}),
    ("whycam s", {"summary", "study", "serve"}),
    ("whycam study --la", {"--layers"}),
    ("whycam study a b --out c --meth", {"--methods"}),
    ("whycam study a b --methods gradcam --sc", {"--score-images"}),
    ("whycam completion ", {"bash", "zsh", "fish"}),
    ("whycam explain cifar10-resnet18 ca", {"cat.png"}),
    ("whycam train --data ca", {"cat.png"}),
    ("whycam report ", {"bin/", "cat.png"}),
]


@pytest.fixture
def folder(tmp_path):
    """The current folder of the shell, with ``whycam`` and one file."""
    (tmp_path / "cat.png").touch()
    write_program(tmp_path, PROGRAM)
    return tmp_path


def write_program(folder, text):
    path = folder / "bin" / "whycam"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def command(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return [path, *FLAGS[name]]


def environment(folder):
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HOME": str(folder), "TERM": "dumb"}


def shell(name, folder, code):
    result = subprocess.run(
        [*command(name), "-c", code], capture_output=True, text=True, cwd=folder, env=environment(folder)
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return {line.strip() for line in result.stdout.splitlines() if line.strip()}


def bash_offers(folder, line):
    """Call the completion function as readline does; if it finds nothing, ``-o default`` makes readline offer files."""
    words = line.split(" ")
    code = f"""source <(whycam completion bash)
[[ $(complete -p whycam) == *"-o default"* ]] || exit 1
COMP_WORDS=({" ".join(map(repr, words))}); COMP_CWORD={len(words) - 1}
COMP_LINE={line!r}; COMP_POINT={len(line)}; COMP_TYPE=9
_python_argcomplete whycam || COMPREPLY=($(compgen -f -- {words[-1]!r}))
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    return shell("bash", folder, code)


def fish_offers(folder, line):
    found = shell("fish", folder, f"whycam completion fish | source; complete -C {line!r}")
    return {entry.split("\t")[0] for entry in found}


@pytest.mark.parametrize(("line", "expected"), OFFERS)
@pytest.mark.parametrize("offers", [bash_offers, fish_offers])
def test_bash_and_fish_offer(offers, line, expected, folder):
    assert offers(folder, line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("whycam tr", "whycam train "),
        ("whycam study --la", "whycam study --layers "),
        ("whycam completion f", "whycam completion fish "),
        ("whycam explain cifar10-resnet18 ca", "cat.png"),
    ],
)
def test_zsh_completes_on_its_command_line(line, expected, folder):
    """zsh completes only on a terminal, so the test opens one."""
    arguments = command("zsh")
    terminal, inside = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), inside)
    process = subprocess.Popen(arguments, cwd=folder, env=environment(folder), start_new_session=True, **streams)
    os.close(inside)
    try:
        setup = "PS1='> '; autoload -Uz compinit; compinit -u -D; source <(whycam completion zsh); print re''ady\n"
        os.write(terminal, setup.encode())
        read_until(terminal, "ready\r\n")
        os.write(terminal, f"{line}\t".encode())
        read_until(terminal, expected)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def read_until(terminal, text):
    seen, deadline = "", time.monotonic() + 60
    while text not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")


@pytest.mark.parametrize("name", SHELLS)
def test_shells_do_not_run_help_texts(name, folder):
    """Some shells show the help texts beside the words. A shell that evaluated them would run code."""
    hostile = 'it\'s $(touch hacked) `touch hacked` [a]: \\ "b"'
    write_program(
        folder,
        f"#!{sys.executable}\nfrom whycam.cli import completion\nfrom whycam.cli.main import build_parser\n"
        "parser = build_parser()\n"
        "action = next(action for action in parser._actions if action.dest == 'command')\n"
        f"action._choices_actions[0].help = {hostile!r}\n"
        "completion.answer(parser)\n",
    )
    (folder / "completion").write_text(script("whycam", name))
    tab = {
        "bash": "COMP_LINE='whycam d' COMP_POINT=8 COMP_TYPE=9; _python_argcomplete whycam; printf '%s\\n' $COMPREPLY",
        "fish": "complete -C 'whycam d'",
        "zsh": "words=(whycam d); BUFFER='whycam d' CURSOR=8; "
        "_describe() { print -l $completions }; _python_argcomplete",
    }[name]
    setup = "autoload -Uz compinit; compinit -u -D; " if name == "zsh" else ""
    offered = shell(name, folder, f"{setup}source completion; {tab}")
    assert any(entry.startswith("demo") for entry in offered)
    assert not (folder / "hacked").exists()


def test_other_commands_do_not_import_argcomplete():
    code = "import sys\nfrom whycam.cli.main import main\nmain([])\nassert 'argcomplete' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == ""
    assert "whycam demo" in result.stdout


def test_missing_argcomplete_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    monkeypatch.setitem(sys.modules, "argcomplete.shell_integration", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == (
        "whycam: error: shell completion needs argcomplete, which is not installed: pip install 'whycam[study]'\n"
    )
