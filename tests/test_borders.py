"""The borders of DESIGN.md: who may import whom, no torch at run time, what is public, and what the wheel holds."""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import camp_sdk
from tests.helpers.processes import run_blocked

ROOT = Path(__file__).parents[1]
FOLDERS = {"camp_sdk": "camp_sdk", "runtime": "camp_sdk.runtime", "export": "camp_sdk.export"}
ENGINES = {"cuda", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tokenizers"}
SERVER = {"fastapi", "prometheus_client", "pydantic", "python_multipart", "starlette", "uvicorn"}
CLUSTER = {"fsspec", "ray"}
TRAINING = {"torch", "lightning", "onnx", "onnxscript", "safetensors", "transformers", "huggingface_hub"}
LIBRARIES = TRAINING | ENGINES | SERVER | CLUSTER | {"numpy", "PIL", "rich", "typer", "tensorboard", "jinja2"}


def sources(*folders: str) -> list[Path]:
    """Every Python file of some folders of the checkout, at any depth."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    """A file of the checkout for messages: runtime/engines/base.py."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """The module a file of the checkout is when installed: runtime/engines/base.py is camp_sdk.runtime.engines.base."""
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS.get(top, top), *(part for part in rest if part != "__init__")])


def package_of(path: Path) -> str:
    return module_of(path.parent / "__init__.py") if path.is_relative_to(ROOT) else ""


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module an import names, whether it is written in full or with dots."""
    package = package_of(path).split(".")
    base = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module a file imports, and whether only inside a function; `from a import b` gives a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    late = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in late) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            module = absolute(path, node)
            yield from ((name, id(node) in late) for name in (module, *(f"{module}.{a.name}" for a in node.names)))


def is_part_of(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def offences(folder: str, *forbidden: str) -> list[str]:
    return [
        f"{name_of(path)}: {module}"
        for path in sources(folder)
        for module, _ in imports(path)
        if any(is_part_of(module, package) for package in forbidden)
    ]


# Who imports whom


@pytest.mark.parametrize("path", sources("runtime"), ids=name_of)
def test_runtime_imports_the_standard_library_numpy_and_itself(path: Path) -> None:
    for module, late in imports(path):
        top = module.split(".")[0]
        allowed = top in sys.stdlib_module_names or top == "numpy" or is_part_of(module, "camp_sdk.runtime")
        assert allowed or (late and top in ENGINES), module


def test_camp_sdk_imports_neither_training_libraries_nor_export() -> None:
    assert offences("camp_sdk", *TRAINING, "camp_sdk.export") == []


def test_only_the_server_imports_its_packages_and_only_its_command_imports_the_server() -> None:
    found = offences("camp_sdk", *SERVER, "camp_sdk.server")
    assert {line.split(":")[0] for line in found if not line.startswith("camp_sdk/server/")} == {
        "camp_sdk/cluster/serving.py",
        "camp_sdk/commands/serve.py",
    }
    late = [module for module, late in imports(ROOT / "camp_sdk/commands/serve.py") if late]
    assert "camp_sdk.server.run" in late
    assert offences("runtime", *SERVER) + offences("export", *SERVER, "camp_sdk.server") == []


def test_only_the_cluster_imports_its_packages_and_only_when_it_needs_them() -> None:
    found = offences("camp_sdk", *CLUSTER) + offences("runtime", *CLUSTER) + offences("export", *CLUSTER)
    assert {line.split(":")[0] for line in found} == {
        f"camp_sdk/cluster/{name}.py" for name in ("building", "ray_shards", "serving", "sources")
    }
    assert all(
        late for path in sources("camp_sdk") for module, late in imports(path) if module.split(".")[0] in CLUSTER
    )


def test_runtime_imports_neither_camp_sdk_nor_export() -> None:
    modules = {module for path in sources("runtime") for module, _ in imports(path)}
    assert {m for m in modules if m.startswith("camp_sdk") and not is_part_of(m, "camp_sdk.runtime")} == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_imports_examples_benchmarks_tests_or_a_bare_folder(folder: str) -> None:
    assert offences(folder, "examples", "benchmarks", "tests", "runtime", "export") == []


def test_tests_share_through_helpers_alone() -> None:
    """No module of tests imports a test module, conftest.py or a script: what several use is in tests/helpers."""
    closed = [module_of(path) for path in sources("tests") if path.name.startswith(("test_", "conftest.", "record_"))]
    assert {"tests.conftest", "tests.test_borders", "tests.helpers.record_nltk_words"} <= set(closed)
    assert offences("tests", *closed) == []


def test_the_walk_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("import json\ndef f():\n    from torch import nn\n")
    assert list(imports(tmp_path / "m.py")) == [("json", False), ("torch", True), ("torch.nn", True)]


# One direction, and no circle

STAGES = ("runtime", "network", "bundling", "training")  # each may import those before it


def graph_of(*folders: str) -> dict[str, set[str]]:
    """Every module of some folders as installed, with the modules of theirs that it imports, inside functions too."""
    files = {module_of(path): path for path in sources(*folders)}
    return {
        module: {name for name, _ in imports(path) if name in files and name != module}
        for module, path in files.items()
    }


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """What is left of a graph when every module that imports nothing of the rest is taken away, again and again."""
    left = dict(graph)
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    return [[module, *sorted(needs & left.keys())] for module, needs in sorted(left.items())]


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = graph_of(*FOLDERS)
    assert len(graph) > 60  # the walk sees the modules, and what they import
    assert "camp_sdk.runtime.engines.base" in graph["camp_sdk.runtime.blocks"]
    assert circles(graph) == []


def test_a_circle_would_be_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["a", "b"], ["b", "c"], ["c", "b"], ["d", "a"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_imports_only_the_stages_before_it(stage: str) -> None:
    later = STAGES[STAGES.index(stage) + 1 :]
    commands = [module_of(path) for path in (ROOT / "export").glob("[!_]*.py")]
    assert len(commands) == 6
    assert offences(f"export/{stage}", *(f"camp_sdk.export.{one}" for one in later), *commands) == []


# Folders


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_with_sources_is_a_package(folder: str) -> None:
    assert {name_of(path) for path in sources(folder) if not (path.parent / "__init__.py").is_file()} == set()


def test_no_script_or_folder_of_export_hides_a_module_that_is_imported() -> None:
    """A script's own folder is first on the path, so `import onnx` would find export/onnx.py or export/onnx/."""
    used = {module.split(".")[0] for path in sources("export", "camp_sdk", "runtime") for module, _ in imports(path)}
    hidden = {path.stem for path in (ROOT / "export").iterdir()}
    assert hidden & (used | LIBRARIES) == set()


# Without torch


RANK = """
import numpy as np
from camp_sdk import Retriever
images = np.random.default_rng(0).standard_normal((10, 5, 12), dtype=np.float32)
with Retriever(sys.argv[1]) as retriever:
    gallery = retriever.encode_images(images)
    matches = retriever.rank("a small red circle", gallery, top_k=10)
    retriever.rank(images[0], retriever.encode_texts(["a red circle", "star"]))
    retriever.explain("a red circle", images[0])
print(*(match.corpus_id for match in matches))
"""


def test_the_blocker_blocks() -> None:
    assert "torch is blocked" in run_blocked("import torch").stderr


def test_camp_sdk_imports_without_torch() -> None:
    done = run_blocked("import camp_sdk\nprint(*camp_sdk.__all__)")
    assert (done.stdout.split(), done.stderr) == (camp_sdk.__all__, "")


def test_every_module_of_camp_sdk_and_runtime_imports_without_torch() -> None:
    names = {module_of(path) for path in sources("camp_sdk", "runtime")}
    names.remove("camp_sdk.triton.rank_model")  # it is copied into a repository, and runs in Triton alone
    done = run_blocked("\n".join(f"import {name}" for name in sorted(names)))
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_camp_sdk_loads_no_engine_and_nothing_of_the_terminal() -> None:
    dear = {"PIL", "concurrent.futures", "onnxruntime", "rich", "tokenizers", "typer"}
    done = run_blocked(f"import camp_sdk\nprint(*sorted({dear} & set(sys.modules)))")
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_a_full_ranking_works_without_torch(feature_bundle: Path, feature_retriever: camp_sdk.Retriever) -> None:
    images = np.random.default_rng(0).standard_normal((10, 5, 12), dtype=np.float32)
    expected = [match.corpus_id for match in feature_retriever.rank("a small red circle", images, top_k=10)]
    done = run_blocked(RANK, feature_bundle)
    assert (done.stderr, done.stdout.split()) == ("", [str(index) for index in expected])


# What is public


def test_all_is_sorted() -> None:
    assert camp_sdk.__all__ == sorted(camp_sdk.__all__)


def test_all_is_what_is_public() -> None:
    public = {
        name for name, value in vars(camp_sdk).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(camp_sdk.__all__) == public


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("folder", FOLDERS)
def test_public_functions_and_classes_have_docstrings(folder: str) -> None:
    bare = [
        f"{name_of(path)}:{node.name}"
        for path in sources(folder)
        for node in definitions(path)
        if not ast.get_docstring(node)
    ]
    assert bare == []


@pytest.mark.parametrize("name", camp_sdk.__all__)
def test_public_methods_of_what_apps_call_have_docstrings(name: str) -> None:
    members = vars(getattr(camp_sdk, name)) if inspect.isclass(getattr(camp_sdk, name)) else {}
    callables = {n: m for n, m in members.items() if inspect.isfunction(m) or isinstance(m, (property, classmethod))}
    assert [n for n, m in callables.items() if not n.startswith("_") and not inspect.getdoc(m)] == []


# The wheel


def tracked_sources() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listed.splitlines() if line.endswith(".py")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy of the tracked files, so that nothing left in the checkout can slip in."""
    copy = tmp_path_factory.mktemp("tree")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_the_wheel_holds_camp_sdk_alone(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"camp_sdk", f"camp_sdk-{version('camp-sdk')}.dist-info"}


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_the_typing_marker(wheel: zipfile.ZipFile) -> None:
    folders = {folder: package.replace(".", "/") for folder, package in FOLDERS.items()}
    expected = {f"{folders[path.parts[0]]}/{Path(*path.parts[1:]).as_posix()}" for path in tracked_sources()}
    held = {name for name in wheel.namelist() if name.startswith("camp_sdk/")}
    assert held == expected | {"camp_sdk/py.typed", "camp_sdk/server/page.html"}
