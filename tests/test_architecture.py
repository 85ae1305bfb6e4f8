"""Do imports run down only, from floor to floor, and does what the plan keeps in one room stay there?

`violations` reads every file under `app/` without running any, so it also sees imports that stand in functions: those
that a start puts off keep the floors as all others do, and there are no others. The last tests plant one fault each in
a small tree, to see that it would be found.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Highest first. What stands in one line is one floor of rooms that never meet; the entry points are one room.
# The plan draws database, telemetry, errors and settings side by side; database stands above the other three, because
# it says DatabaseUnavailable in the words of errors.py.
ENTRY = ("__main__", "cli", "cli_accounts", "cli_verify", "console", "preparation", "serve", "server", "main")
FLOORS: tuple[tuple[str, ...], ...] = (
    ENTRY,
    ("api",),
    ("wiring",),
    ("generations",),
    ("accounts", "upstream", "storage"),
    ("database", "connections"),
    ("telemetry", "errors", "settings"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SANDBOX_USERS = ("cli", "console", "serve")

# Where each library may be imported: a module of this name, or one that begins so.
HOMES: Mapping[str, tuple[str, ...]] = {
    "fastapi": ("app.api.", "app.main"),
    "httpx": ("app.upstream.",),
    "httptools": ("app.connections.",),
    "aiohappyeyeballs": ("app.connections.",),
    "pybase64": ("app.upstream.", "app.api."),
    "zlib_ng": ("app.generations.picture",),
    "boto3": ("app.storage.s3",),
    "botocore": ("app.storage.s3",),
    "mypy_boto3_s3": ("app.storage.s3",),
}
# What takes long to import and is needed by few processes: who opens it, and imports it then. tests/test_start.py holds
# that a start really goes without.
PUT_OFF: Mapping[str, str] = {
    "app.database.migration": "app.database.schema",
    "app.sandbox.server": "app.cli",
    "app.serve": "app.cli",
    "app.storage.s3": "app.wiring",
}
BANNED_NAMES = {"utils", "common", "helpers", "manager", "service", "data", "info", "handle", "process"}
_BY_NAME = ("__import__", "import_module")


@dataclass(frozen=True)
class Import:
    """One name that a module imports: a module of ours where it is one, else as it is written."""

    target: str
    line: int
    in_function: bool


@dataclass(frozen=True)
class Module:
    """One file of the app, by its dotted name."""

    name: str
    path: Path
    imports: tuple[Import, ...]

    @property
    def room(self) -> str:
        """The folder or the top-level file it belongs to; empty for `app` itself."""
        return room_of(self.name)


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def violations(root: Path) -> list[str]:
    """Every way in which the tree under `root/app` breaks the plan, each as `file:line says what`; empty when none."""
    modules = read_modules(root)
    found = [fault for module in modules.values() for fault in _faults_of(module)]
    return sorted(found) + [f"a circle of imports: {' > '.join(circle)}" for circle in _circles(modules)]


def read_modules(root: Path) -> dict[str, Module]:
    """The modules under `root/app` by name, with what each imports anywhere in its file."""
    files = {_name(root, path): path for path in sorted((root / "app").rglob("*.py"))}
    return {
        name: Module(name, path.relative_to(root), tuple(_imports(path, name, frozenset(files))))
        for name, path in files.items()
    }


def _name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, name: str, ours: frozenset[str]) -> Iterator[Import]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, in_function in _walk(ast.parse(path.read_text(encoding="utf-8")), in_function=False):
        for target in _targets(node, package, ours):
            yield Import(target, getattr(node, "lineno", 0), in_function)


def _walk(node: ast.AST, *, in_function: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, in_function
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, in_function=in_function or inside)


def _targets(node: ast.AST, package: str, ours: frozenset[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        upwards = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*(upwards if node.level else []), *([node.module] if node.module else [])])
        for alias in node.names:
            # `from app.generations import records` imports a module, `from app.errors import NotFound` does not.
            yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in ours else base
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in _BY_NAME:
        yield "*"


def _faults_of(module: Module) -> Iterator[str]:
    if module.room and module.room != "sandbox" and module.room not in FLOOR_OF:
        yield f"{module.path} stands on no floor"
    if banned := BANNED_NAMES.intersection(module.name.split(".")):
        yield f"{module.path} is named {min(banned)}, which says nothing"
    for entry in module.imports:
        place = f"{module.path}:{entry.line}"
        if entry.target.partition(".")[0] in ("bench", "tests"):
            yield f"{place} imports {entry.target}, which is not installed with it"
        opener = PUT_OFF.get(entry.target)
        if entry.in_function and opener != module.name:
            yield f"{place} imports {entry.target} inside a function"
        if not entry.in_function and opener is not None and _is_started(module.name):
            yield f"{place} imports {entry.target} at once, which {opener} puts off"
        if entry.target == "*":
            yield f"{place} imports by a name that nobody can look up"
        homes = HOMES.get(entry.target.partition(".")[0])
        if homes is not None and not module.name.startswith(homes):
            yield f"{place} imports {entry.target}, which belongs to {' and '.join(homes)}"
        if entry.target.partition(".")[0] == "app" and (fault := _between_rooms(module.room, room_of(entry.target))):
            yield f"{place} imports {entry.target}: {fault}"


def _is_started(name: str) -> bool:
    """Whether a process may have it without having opened what is put off, or a process of its own."""
    return name not in PUT_OFF and room_of(name) != "sandbox"


def _between_rooms(room: str, other: str) -> str | None:
    if room == other or (room in ENTRY and other in ENTRY):
        return None
    if room == "sandbox":
        return "the sandbox knows nothing of the app"
    if other == "sandbox":
        return None if room in SANDBOX_USERS else "the sandbox is for the entry points and for tests"
    if other == "settings" and FLOOR_OF.get(room, 0) > FLOOR_OF["wiring"]:
        return "a room below wiring is handed plain values"
    if FLOOR_OF.get(room, -1) == FLOOR_OF.get(other, -2):
        return f"{room} and {other} are rooms of one floor"
    if FLOOR_OF.get(room, -1) > FLOOR_OF.get(other, -1):
        return f"{room} is below {other}"
    return None


def _circles(modules: Mapping[str, Module]) -> list[list[str]]:
    """One circle for each module that is in one and was in none before, as the names along the way."""
    edges = {name: [e.target for e in module.imports if e.target in modules] for name, module in modules.items()}
    found: list[list[str]] = []
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for target in edges[name]:
                follow(target, [*way, name])
            done.add(name)

    for name in edges:
        follow(name, [])
    return found


def test_imports_run_down_only_and_every_library_stays_in_its_room() -> None:
    assert violations(ROOT) == []


def test_every_room_of_the_plan_is_there_and_is_read() -> None:
    modules = read_modules(ROOT)

    assert {module.room for module in modules.values()} - {""} == {*FLOOR_OF, "sandbox"}
    assert sum(len(module.imports) for module in modules.values()) > len(modules)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small app with one module in every room, which breaks no rule."""
    for room in [*FLOOR_OF, "sandbox"]:
        _plant(tmp_path, f"app/{room}/thing.py" if room not in ENTRY else f"app/{room}.py", "import json\n")
    _plant(tmp_path, "app/api/native.py", "from fastapi import FastAPI\nfrom app.generations import thing\n")
    _plant(tmp_path, "app/storage/s3.py", "import boto3\nfrom .thing import put\n")
    _plant(tmp_path, "app/storage/folder.py", "from .thing import put\n")
    _plant(tmp_path, "app/cli.py", "def f():\n    from app.serve import serve\nfrom app.sandbox.thing import run\n")
    return tmp_path


def _plant(root: Path, file: str, source: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(source)


def test_a_tree_that_keeps_the_plan_has_no_violations(tree: Path) -> None:
    assert violations(tree) == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("app/accounts/x.py", "from app.generations import thing", "accounts is below generations"),
        ("app/accounts/x.py", "import app.api.native", "accounts is below api"),
        ("app/accounts/x.py", "from ..wiring.thing import open", "accounts is below wiring"),
        ("app/errors/x.py", "from app.database.thing import tables", "errors is below database"),
        ("app/api/x.py", "from app import main", "api is below main"),
        ("app/accounts/x.py", "from app.storage import thing", "accounts and storage are rooms of one floor"),
        ("app/errors/x.py", "from app.telemetry import thing", "errors and telemetry are rooms of one floor"),
        ("app/generations/x.py", "from app.settings import thing", "a room below wiring is handed plain values"),
        ("app/database/x.py", "from ..settings.thing import Settings", "a room below wiring is handed plain values"),
        ("app/generations/x.py", "import fastapi.responses", "belongs to app.api. and app.main"),
        ("app/generations/x.py", "from httpx import URL", "belongs to app.upstream."),
        ("app/storage/folder.py", "from botocore.config import Config", "belongs to app.storage.s3"),
        ("app/main.py", "from app.sandbox.thing import run", "the sandbox is for the entry points"),
        ("app/upstream/x.py", "from app.sandbox import thing", "the sandbox is for the entry points"),
        ("app/sandbox/x.py", "from app.errors import thing", "the sandbox knows nothing of the app"),
        ("app/api/x.py", "def f():\n    import json", "imports json inside a function"),
        ("app/api/x.py", "class A:\n    async def f(self):\n        from app.wiring import thing", "inside a function"),
        ("app/api/x.py", "def f():\n    from app.storage import s3", "imports app.storage.s3 inside a function"),
        ("app/main.py", "from app.storage import s3", "imports app.storage.s3 at once, which app.wiring puts off"),
        ("app/console.py", "import app.serve", "imports app.serve at once, which app.cli puts off"),
        ("app/api/x.py", "import importlib\nimportlib.import_module('app.cli')", "a name that nobody can look up"),
        ("app/api/x.py", "__import__('app.cli')", "a name that nobody can look up"),
        ("app/api/helpers.py", "", "is named helpers"),
        ("app/accounts/utils/x.py", "", "is named utils"),
        ("app/billing/x.py", "", "stands on no floor"),
        ("app/api/x.py", "from bench.load import load", "is not installed with it"),
        ("app/storage/thing.py", "from . import folder", "app.storage.folder > app.storage.thing > app.storage.folder"),
        ("app/wiring/thing.py", "if TYPE_CHECKING:\n    from app.wiring.thing import me", "a circle of imports"),
    ],
)
def test_a_planted_fault_is_found(tree: Path, file: str, source: str, fault: str) -> None:
    _plant(tree, file, source)

    found = violations(tree)

    assert len(found) == 1
    assert fault in found[0]
