"""The order of the rooms of the package: what may import what, what may not be where, and how long a file may be."""

import ast
import io
import tokenize
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import fsdino
from fsdino.base.registry import METHODS

PACKAGE = Path(fsdino.__file__).parent
# Lowest first. A room imports from its own step only itself, and otherwise from lower steps alone.
STEPS = (
    ("base",),
    ("models", "teachers", "visualize"),
    ("methods",),
    ("cache",),
    ("data",),
    ("metrics", "predict"),
    ("training", "export", "demo", "annotate", "serve"),
    ("evaluation",),
    ("pipeline",),
    ("assets", "cli"),
)
STEP = {room: step for step, rooms in enumerate(STEPS) for room in rooms}
MAX_LINES = 320
MAX_INNER_IMPORTS = 15


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Dotted name of every module of a package to its file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Every dotted name that a file imports, wherever in the file, and whether it stands inside a function."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(f"{node.module}.{alias.name}", id(node) in inner) for alias in node.names]
    return found


def arrows(known: dict[str, Path]) -> dict[str, set[str]]:
    """Module to the modules of the same package that it imports."""
    root = next(iter(known)).partition(".")[0]
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = set()
        for target, _ in imports(path):
            if target.split(".")[0] == root:
                # `from a.b import c` names the module a.b.c or a name in the module a.b
                targets.add(target if target in known else target.rpartition(".")[0])
        graph[name] = targets & known.keys() - {name}
    return graph


def room(module: str) -> str:
    """The room that a module of the package is in; the package's own file is in none."""
    return (module.split(".") + [""])[1]


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Arrows that do not lead down, as text."""
    wrong = []
    for source, targets in graph.items():
        for target in targets:
            a, b = room(source), room(target)
            if a and b and a != b and STEP[a] <= STEP[b]:
                wrong.append(f"{source} -> {target}")
    return sorted(wrong)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_file_is_in_a_room_of_the_order() -> None:
    assert {room(name) for name in modules()} - {""} == set(STEP)


def test_no_arrow_leads_up() -> None:
    assert upward(arrows(modules())) == []


def test_no_circle() -> None:
    assert circle(arrows(modules())) == []


def test_an_arrow_turned_round_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "fsdino"
    texts = {"base/a.py": "def f():\n    from fsdino.models.b import g", "models/b.py": "import fsdino.base.a"}
    for name, text in texts.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    graph = arrows(modules(package))
    assert upward(graph) == ["fsdino.base.a -> fsdino.models.b"]
    assert set(circle(graph)) == {"fsdino.base.a", "fsdino.models.b"}


def test_lightning_stays_in_training_and_above() -> None:
    lowest = STEP["training"]
    wrong = [
        name
        for name, path in modules().items()
        if room(name) and STEP[room(name)] < lowest and any(t.split(".")[0] == "lightning" for t, _ in imports(path))
    ]
    assert wrong == []


def test_models_read_no_files() -> None:
    forbidden = {"pathlib", "safetensors", "os", "shutil", "huggingface_hub"}
    for name, path in modules().items():
        if room(name) == "models":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            calls = {
                node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                for node in ast.walk(tree)
                if isinstance(node, ast.Call)
            }
            assert not {target.split(".")[0] for target, _ in imports(path)} & forbidden, name
            assert not calls & {"open", "read_text", "read_bytes", "load_file"}, name


def test_nobody_outside_asks_which_method_it_is() -> None:
    classes = {target.partition(":")[2] for target in METHODS.values()} | {"SupportMemory"}
    asked = []
    for name, path in modules().items():
        if room(name) not in ("models", "methods"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                    names = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                    asked += [f"{name}:{node.lineno}"] if names & classes else []
    assert asked == []


def test_predicting_with_graphs_needs_no_torch() -> None:
    graph = arrows(modules())
    reached, todo = set(), ["fsdino.predict.command", "fsdino.predict.engines.onnx", "fsdino.predict.engines.openvino"]
    allowed = {"fsdino.base.storage"}  # imported when the torch runtime is asked for
    while todo:
        name = todo.pop()
        if name not in reached | allowed:
            reached.add(name)
            todo += graph[name]
    heavy = [n for n in reached if any(t.split(".")[0] == "torch" and not inner for t, inner in imports(modules()[n]))]
    assert heavy == []


@pytest.mark.parametrize("folder", ["fsdino", "benchmarks", "tests"])
def test_no_file_is_long(folder: str) -> None:
    files = (PACKAGE.parent / folder).rglob("*.py")
    counts = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: count for path, count in counts.items() if count > MAX_LINES} == {}


def test_few_imports_hide_in_functions() -> None:
    hidden = [f"{name}: {target}" for name, path in modules().items() for target, inner in imports(path) if inner]
    lines = {entry.rpartition(".")[0] for entry in hidden}  # names from one module count once
    assert len(lines) <= MAX_INNER_IMPORTS, sorted(lines)


def test_no_call_is_a_row_of_positions() -> None:
    long = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # layers in a row are a list, not arguments with meanings of their own
            if isinstance(node, ast.Call) and len(node.args) > 5 and ast.unparse(node.func) != "nn.Sequential":
                long.append(f"{name}:{node.lineno}")
    assert long == []


def test_comments_say_why_often_enough() -> None:
    lines = comments = 0
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments += sum(token.type == tokenize.COMMENT for token in tokens)
    assert comments >= 0.02 * lines


def test_every_public_name_is_reachable_from_the_package() -> None:
    for name in fsdino.__all__:
        assert getattr(fsdino, name) is not None
    for name, module in fsdino._PUBLIC.items():
        assert getattr(fsdino, name) is getattr(import_module(module), name)
