"""The arrows of the architecture, held by parsing every import, and what a fresh interpreter really loads.

top (cli, demo/evaluate) -> export, calibration, parity, training -> runtime, model -> vocabulary
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# Folder of each package; those that a later stage brings are here already.
FOLDERS = {"videomar": "videomar"} | {
    f"videomar.{n}": n for n in ("export", "runtime", "training", "calibration", "parity", "serving")
}

# Modules that use everything below them: nothing imports them, and they import the rest inside their functions.
TOP = {
    "videomar": "the public names, each loaded when it is first used",
    "videomar.cli": "one function a command: each imports what it runs",
    "videomar.__main__": "starts the command line",
    "videomar.demo.evaluate": "scores clips that the runtime generates; the demo's own driver, not its vocabulary",
}
LAYERS = {  # layer -> layers it may import, and packages besides the standard library
    "vocabulary": ({"vocabulary"}, {"numpy"}),
    "model": ({"vocabulary", "model"}, {"numpy", "torch", "diffusers", "transformers", "safetensors"}),
    "runtime": ({"vocabulary", "runtime"}, {"numpy", "tokenizers", "av", "cv2"}),
    "export": (
        {"vocabulary", "model", "runtime", "export"},
        {
            "numpy",
            "torch",
            "diffusers",
            "transformers",
            "safetensors",
            "tokenizers",
            "onnx",
            "onnx_ir",
            "onnxruntime",
        },
    ),
    "calibration": (
        {"vocabulary", "model", "runtime", "calibration"},
        {"numpy", "torch", "onnx", "onnxruntime"},
    ),
    "parity": ({"vocabulary", "model", "runtime", "parity"}, {"numpy", "cv2", "onnxruntime"}),
    "training": ({"vocabulary", "model", "runtime", "training"}, {"numpy", "torch", "safetensors", "cv2", "tomli"}),
    "serving": (
        {"vocabulary", "runtime", "serving"},
        {"numpy", "cv2", "av", "fastapi", "starlette", "uvicorn", "prometheus_client", "sqlalchemy", "fsspec", "ray"},
    ),
    "top": (
        {"vocabulary", "model", "runtime", "export", "calibration", "parity", "training", "serving", "top"},
        {"numpy"},
    ),
}
EXCEPTIONS = {  # (module, package): why
    ("videomar.progress", "tqdm"): "the bar, on a terminal",
    ("videomar.parsing", "shtab"): "shell completion, where it is asked for",
    ("videomar.demo.words", "tokenizers"): "writes the demo's tokenizer.json",
    ("videomar.parity.reference", "torch"): "the PyTorch side of a comparison",
    ("videomar.parity.subject", "torch"): "opens it, where PyTorch is installed",
    ("videomar.parity.bisecting.torch_side", "torch"): "the same side, layer by layer",
    ("videomar.parity.bisecting.pieces", "onnx"): "cuts graphs into layers, where the package is installed",
    ("videomar.parity.bisecting.widen", "onnx"): "the same layers in FP32",
    ("videomar.config", "typing_extensions"): "for type checkers alone, which bring it",
    ("videomar.runtime.pipeline", "typing_extensions"): "the same",
    ("videomar.export.importing", "typing_extensions"): "the same",
    ("videomar.cli", "torch"): "`train` sets PyTorch's threads before the training modules are imported",
    ("videomar.runtime.backends.ort", "onnxruntime"): "the backend",
    ("videomar.runtime.backends.ort_cache", "onnxruntime"): "its K/V",
    ("videomar.runtime.backends.ort_memory", "onnxruntime"): "its buffers",
    ("videomar.runtime.backends.ort_providers", "onnxruntime"): "its devices",
    ("videomar.runtime.backends.ort_session", "onnxruntime"): "every session of the project",
    ("videomar.runtime.system", "onnxruntime"): "`--backend auto` asks which providers there are",
    ("videomar.runtime.backends.trt_module", "tensorrt"): "the one place that loads TensorRT",
    ("videomar.runtime.backends.trt_module", "tensorrt_rtx"): "the same",
    ("videomar.runtime.backends.trt_module", "tensorrt_rtx_bindings"): "the same",
}
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "safetensors")  # the extra `export`
GPU = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "cuda")
# What runs on the target: it may have neither PyTorch nor the onnx package.
ON_THE_TARGET = ("videomar.export.build_command", "videomar.export.build_worker", "videomar.export.engine")


def modules() -> dict[str, Path]:
    """Every module of the source tree by its dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *file.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = file
    return found


MODULES = modules()


def layer(module: str) -> str:
    if module in TOP:
        return "top"
    below = module.split(".")[1:2]
    return below[0] if below and below[0] in LAYERS else "vocabulary"


def imports(tree: ast.AST, module: str) -> Iterator[str]:
    """Dotted names of all that is imported anywhere in it, by statement or by a name given to importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import, expected a whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value)
            else:
                assert module == "videomar.runtime.backends.cuda", f"{module} imports what cannot be seen here"


def parsed(module: str) -> list[str]:
    return list(imports(ast.parse(MODULES[module].read_text()), module))


def is_ours(name: str) -> bool:
    return name.split(".")[0] == "videomar"


def third_party(module: str) -> set[str]:
    names = {name.split(".")[0] for name in parsed(module) if not is_ours(name)}
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_layers_below_it(module: str) -> None:
    allowed = LAYERS[layer(module)][0]
    for name in filter(is_ours, parsed(module)):
        assert layer(name) in allowed, f"{module} ({layer(module)}) imports {name} ({layer(name)})"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_the_packages_of_its_layer(module: str) -> None:
    allowed = LAYERS[layer(module)][1] | {package for where, package in EXCEPTIONS if where == module}
    assert third_party(module) <= allowed


def test_every_exception_is_needed() -> None:
    assert {key for key in EXCEPTIONS if key[1] not in third_party(key[0])} == set()


def test_onnx_runtime_sessions_are_opened_in_one_place() -> None:
    """With other options an INT8 graph gives other numbers on a CPU without VNNI."""
    here = ROOT / "runtime" / "backends" / "ort_session.py"
    folders = (*FOLDERS.values(), "tests", "benchmarks")
    opening = {file for folder in folders for file in (ROOT / folder).rglob("*.py") if opens_sessions(file)}
    assert opening == {here}


def opens_sessions(file: Path) -> bool:
    calls = (node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    return any(ast.unparse(called).split(".")[-1] in ("InferenceSession", "SessionOptions") for called in calls)


def test_every_package_of_the_checkout_has_a_layer() -> None:
    folders = {f.parent.name for f in ROOT.glob("*/__init__.py")} - {"tests", "build"}
    assert folders <= set(FOLDERS.values())
    assert {"vocabulary", "model", "runtime", "export", "training", "top"} <= {layer(module) for module in MODULES}


def test_the_layers_have_no_way_round() -> None:
    below = {name: allowed - {name} for name, (allowed, _) in LAYERS.items()}
    while leaves := {name for name, allowed in below.items() if not allowed}:
        below = {name: allowed - leaves for name, allowed in below.items() if name not in leaves}
    assert not below


UNBURDENED = ("videomar.console", "videomar.errors", "videomar.options", "videomar.progress", "videomar.stopping")


def test_the_command_line_loads_nothing_before_it_runs_a_command() -> None:
    file = ast.parse(MODULES["videomar.cli"].read_text())
    at_once = ast.Module([node for node in file.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    for name in imports(at_once, "videomar.cli"):
        assert name.split(".")[0] in sys.stdlib_module_names or name in UNBURDENED, name


# What really is loaded


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""


def fresh(code: str, *argv: object) -> str:
    """What `code` prints in a new interpreter."""
    command = [sys.executable, "-c", code, *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_without(blocked: tuple[str, ...], names: list[str]) -> None:
    lines = [f"import {name}" for name in names]
    fresh(BLOCKER.format(blocked=blocked) + "\n".join(lines))


def test_the_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="numpy is blocked"):
        imported_without(("numpy",), ["videomar.schedule"])


def test_the_vocabulary_and_the_command_line_need_numpy_alone() -> None:
    names = [m for m in MODULES if layer(m) == "vocabulary" and m != "videomar.demo.words"]
    runtime = ("onnxruntime", "tokenizers", "cv2", "av", "tqdm")
    imported_without((*HEAVY, *GPU, *runtime), [*names, "videomar.cli"])


def test_every_runtime_module_imports_without_pytorch_onnx_and_tensorrt() -> None:
    imported_without((*HEAVY, *GPU), [m for m in MODULES if layer(m) == "runtime"])


def test_building_engines_imports_neither_pytorch_nor_onnx() -> None:
    imported_without((*HEAVY, *GPU), list(ON_THE_TARGET))


def test_generating_a_video_loads_neither_pytorch_nor_onnx(tiny_artifacts: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "start.png"), np.zeros((64, 64, 3), np.uint8))
    code = f"""
import sys
from videomar.cli import main
assert main(sys.argv[1:]) == 0
print(sorted({{name.split(".")[0] for name in sys.modules}} & set({HEAVY + GPU})))
"""
    options = "--frames 9 --mask-steps 1 --head-steps 1 --threads 1 --backend ort-cpu --prompt".split()
    files = ("--image", tmp_path / "start.png", "-o", tmp_path / "clip.mp4")
    printed = fresh(code, "generate", tiny_artifacts, *files, *options, "a red circle falls")
    assert printed.splitlines()[-1] == "[]"
    assert (tmp_path / "clip.mp4").is_file()
