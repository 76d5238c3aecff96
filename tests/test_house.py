"""The rules of the house, read from the source: CONTRIBUTING.md says why each of them is there."""

import ast
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from transformers.dynamic_module_utils import get_relative_import_files

import hf_tps
from tests.conftest import ROOT

PACKAGE = ROOT / "hf_tps"
FOLDERS = ("hf_tps", "conversion", "examples", "tests")
LONGEST_LINE = 120
# lines of a function, its docstring included
LONGEST_FUNCTION = {"hf_tps": 60, "conversion": 80, "examples": 80}

# From the ground up: a module imports from its own floor and from those below it, never from one above.
FLOORS = {
    "functions": (
        *("index_cache", "window_layout", "temporal_shift", "leap_attention", "token_merging", "cpu_pieces"),
        *("plain_text", "text_files", "torch_files"),
        *(
            "frame_geometry",
            "frame_sampling",
            "reading_threads",
            "video_sources",
            "video_reading",
            "checkpoint_reading",
        ),
    ),
    "layers": ("layers", "vit_layers", "image_weights"),
    "plug-ins and configurations": (
        "plug",
        "*_plug",
        "*_plug_in",
        "token_merging_backbones",
        "size_aware_attention",
        "configuration_*",
    ),
    "models and their processor": ("modeling_*", "video_processing_*"),
    "public names": ("__init__",),
    "training": ("training.*",),
    "scripts": ("conversion.*", "examples.*"),
}


def sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def place(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{node.lineno}"


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def module_name(file: Path) -> str:
    """`layers` for hf_tps/layers.py, `training.data` for hf_tps/training/data.py, `examples.classify` for a script."""
    path = file.relative_to(PACKAGE if file.is_relative_to(PACKAGE) else ROOT).with_suffix("")
    return ".".join(path.parts)


def imported_modules(file: Path) -> set[str]:
    """The modules of this repository that a file imports, wherever in the file, named as `module_name` does."""
    known = {module_name(other) for other in sources("hf_tps", "conversion", "examples")}
    here = file.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(here[: len(here) - node.level + 1]) + "." if node.level else ""
            start += node.module or ""
            targets = [start, *(f"{start.rstrip('.')}.{alias.name}" for alias in node.names)]
        else:
            continue
        for target in targets:
            inside = target.removeprefix("hf_tps").lstrip(".") if target.split(".")[0] == "hf_tps" else target
            found |= {name for name in (inside or "__init__", f"{inside}.__init__") if name in known}
    return found


def floor_of(module: str) -> int:
    floors = [
        number
        for number, patterns in enumerate(FLOORS.values())
        if any(fnmatch(module, pattern) for pattern in patterns)
    ]
    assert len(floors) == 1, f"{module} must stand on one floor of FLOORS, it stands on {len(floors)}"
    return floors[0]


def test_the_flat_part_imports_in_the_one_way_that_a_hub_copy_survives():
    """Transformers copies what `from .name import thing` names, and nothing else."""
    wrong = []
    for file in sorted(PACKAGE.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "hf_tps" for alias in node.names):
                wrong.append(f"{place(file, node)}: imports the package by its name")
            if isinstance(node, ast.ImportFrom):
                own = (node.module or "").split(".")[0] == "hf_tps"
                flat = node.level == 1 and node.module is not None and "." not in node.module
                if own or (node.level and not flat):
                    wrong.append(f"{place(file, node)}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("start", ["modeling_*.py", "configuration_*.py", "video_processing_*.py"])
def test_every_file_that_a_hub_copy_needs_is_copied(start):
    """What Transformers finds by its search of the text is what Python imports: no file more, no file less."""
    starts = sorted(PACKAGE.glob(start))
    assert starts
    for file in starts:
        needed, queue = {file}, [file]
        while queue:
            new = {PACKAGE / f"{name}.py" for name in imported_modules(queue.pop())} - needed
            needed |= new
            queue += new
        copied = {file, *map(Path, get_relative_import_files(file))}
        assert copied == needed, file.name


def test_no_string_of_the_flat_part_looks_like_an_import_to_transformers():
    wrong = []
    for file in sorted(PACKAGE.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines = [line.strip() for line in node.value.splitlines()]
                wrong += [f"{place(file, node)}: {line}" for line in lines if line.startswith(("from .", "import ."))]
    assert not wrong, "\n".join(wrong)


def test_imports_run_one_way():
    wrong = []
    names = list(FLOORS)
    for file in sources("hf_tps", "conversion", "examples"):
        module = module_name(file)
        floor = floor_of(module)
        wrong += [
            f"{module} ({names[floor]}) imports {other} ({names[floor_of(other)]})"
            for other in sorted(imported_modules(file))
            if floor_of(other) > floor
        ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    left = {module_name(file): imported_modules(file) for file in sources("hf_tps", "conversion", "examples")}
    assert len(left) > 30
    while True:  # off with what lies beneath or above every circle, until nothing is left but circles
        needed_by_others = {name for module, needed in left.items() for name in needed - {module}}
        on_circles = {
            module: needed for module, needed in left.items() if needed & left.keys() and module in needed_by_others
        }
        if len(on_circles) == len(left):
            break
        left = on_circles
    assert not left, {module: sorted(needed & left.keys()) for module, needed in left.items()}


def test_no_module_puts_off_its_annotations():
    """`from __future__ import annotations` breaks a Hub copy, and switches the checks of configs off."""
    wrong = [
        place(file, node)
        for file in sources(*FOLDERS)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", LONGEST_FUNCTION)
def test_no_function_is_longer_than_a_screen(folder):
    wrong = []
    for file in sources(folder):
        for function in functions(file):
            lines = function.end_lineno - function.lineno + 1
            if lines > LONGEST_FUNCTION[folder]:
                wrong.append(f"{place(file, function)}: {function.name} has {lines} lines")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", [*FOLDERS, "docs"])
def test_no_line_is_longer_than_the_page(folder):
    """The rows of a table in Markdown are excepted: they cannot be broken."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if folder == "docs" else []
    wrong = []
    for file in [*sources(folder), *pages]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if len(line) > LONGEST_LINE and not (file.suffix == ".md" and line.startswith("|")):
                wrong.append(f"{file.relative_to(ROOT)}:{number}: {len(line)} characters")
    assert not wrong, "\n".join(wrong)


def test_every_function_of_the_package_says_its_types():
    wrong = []
    for file in sources("hf_tps"):
        for function in functions(file):
            arguments = function.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            bare = [
                argument.arg
                for argument in named
                if argument is not None and argument.annotation is None and argument.arg not in ("self", "cls")
            ]
            if function.returns is None and function.name != "__init__":
                bare.append("the result")
            if bare:
                wrong.append(f"{place(file, function)}: {function.name} leaves open: {', '.join(bare)}")
    assert not wrong, "\n".join(wrong)


def test_docstrings_begin_with_their_summary():
    wrong = []
    for file in sources("hf_tps", "conversion", "examples"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node, clean=False)
                if text is not None and text.lstrip(" ").startswith("\n"):
                    wrong.append(f"{file.relative_to(ROOT)}: {getattr(node, 'name', 'the file')}")
    assert not wrong, "\n".join(wrong)


def test_what_the_package_imports_is_public():
    found = {
        name: value
        for name, value in vars(hf_tps).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("hf_tps.")
    }
    assert len(found) > 20
    assert sorted(hf_tps.__all__) == sorted([*found, "FAMILIES"])


def test_the_version_is_the_same_wherever_it_stands():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == citation["version"] == hf_tps.__version__
    assert f"## [{hf_tps.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_papers_to_cite_are_those_that_the_readme_names():
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    papers = re.findall(r"\| \[[^]]*\]\((https://[^)]*)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(papers) == 4
    assert [reference["url"] for reference in references] == papers
