"""The rooms of docs/design.md, held against every import in the code: lazy and TYPE_CHECKING ones included."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
_ROW = re.compile(r"^\| ((?:`[\w/.]+`(?:, )?)+) \|", re.MULTILINE)


def rooms_of(page: str) -> dict[str, int]:
    """Module prefix → its room's position in the page's table of rooms; the files of one row share a position."""
    table = page.split("## Rooms", 1)[1].split("\n## ", 1)[0]
    rows = [re.findall(r"`([\w/.]+)`", row) for row in _ROW.findall(table)]
    return {
        "whycam." + name.removesuffix("/").removesuffix(".py").replace("/", "."): position
        for position, names in enumerate(rows)
        for name in names
    }


def modules_of(src: Path) -> dict[str, str]:
    """Module name → its source."""
    found = {}
    for path in sorted((src / "whycam").rglob("*.py")):
        name = ".".join(path.relative_to(src).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path.read_text(encoding="utf-8")
    return found


def imports_of(name: str, source: str, modules: Mapping[str, object]) -> Iterator[str]:
    """Every module of whycam that a module imports, anywhere in its code."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [found if found in modules else str(node.module) for found in names]
        yield from (found for found in names if found.split(".")[0] == "whycam" and found != name)


def room_of(module: str, rooms: Mapping[str, int]) -> int | None:
    """The position of the longest room name that begins the module's name; None if there is no such room."""
    parts = module.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((rooms[prefix] for prefix in prefixes if prefix in rooms), None)


def faults(modules: Mapping[str, str], rooms: Mapping[str, int]) -> list[str]:
    """What breaks the rules: a module without a room, an import down the list, an import of the root, a cycle."""
    found = []
    graph = {name: set(imports_of(name, source, modules)) for name, source in modules.items()}
    for name, imported in graph.items():
        if name in ("whycam", "whycam.__main__"):
            continue
        own = room_of(name, rooms)
        if own is None:
            found.append(f"{name} is in no room of docs/design.md")
            continue
        for other in sorted(imported):
            theirs = room_of(other, rooms)
            if theirs is None:
                found.append(f"{name} imports {other}, which is in no room")
            elif theirs > own:
                found.append(f"{name} imports {other}, a room below it")
    return found + [f"{' -> '.join(cycle)} import each other" for cycle in cycles(graph)]


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that can reach themselves: strongly connected components (Tarjan, 1972) of more than one."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            groups.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return [group for group in groups if len(group) > 1]


@pytest.fixture(scope="module")
def rooms() -> dict[str, int]:
    return rooms_of((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))


def test_imports_run_up_the_list_of_rooms_and_never_in_a_circle(rooms):
    assert faults(modules_of(SRC), rooms) == []


def test_every_listed_room_exists(rooms):
    modules = modules_of(SRC)
    assert [room for room in rooms if room not in modules] == []


@pytest.mark.parametrize(
    ("module", "added", "fault"),
    [
        ("whycam.cam.maps", "from whycam.study.folder import Study", "whycam.cam.maps imports whycam.study.folder"),
        ("whycam.cam.maps", "def f():\n    import whycam.report.html", "whycam.cam.maps imports whycam.report.html"),
        (
            "whycam.data.source",
            "if TYPE_CHECKING:\n    from whycam.models import load",
            "whycam.data.source imports whycam.models",
        ),
        (
            "whycam.cam.passes.plan",
            "from whycam.cam.methods.registry import Method",
            "whycam.cam.passes.plan imports whycam.cam.methods.registry",
        ),
        ("whycam.seeds", "def f():\n    from whycam.cam import explain", "whycam.seeds imports whycam.cam"),
        ("whycam.nn_utils", "import whycam", "whycam.nn_utils imports whycam, which is in no room"),
        ("whycam.files", "from whycam.seeds import generator", "whycam.files -> whycam.seeds import each other"),
        ("whycam.somewhere.new", "", "whycam.somewhere.new is in no room"),
    ],
)
def test_the_check_finds_each_kind_of_fault(rooms, module, added, fault):
    modules = modules_of(SRC)
    modules[module] = f"{modules.get(module, '')}\n{added}\n"
    if "each other" in fault:
        modules["whycam.seeds"] += "\nfrom whycam.files import writing\n"
    assert any(found.startswith(fault) for found in faults(modules, rooms))
