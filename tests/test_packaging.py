"""What the package says of itself is so: dependencies, version, data files, install commands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import open_clip_triplet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "open_clip_triplet"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: part of the package -> extra whose packages it may import, beside the base ones
ROOMS = {"tripletdata": "build", "evaluation": "eval", "inspect": "inspect"}
#: import names of which the environment may not know the distribution
NAMES = {"vllm": "vllm", "tomli": "tomli", "ray": "ray"}
#: imported where something else has imported it before, so that nobody needs it for our sake
OPTIONAL = {"wandb": "OpenCLIP's --report-to wandb"}
#: declared but imported by name nowhere, and why
INDIRECT = {
    "tensorboard": "OpenCLIP's --report-to tensorboard",
    "accelerate": "diffusers loads weights through it",
    "nltk": "triplet-inspect counts concepts as triplet-shards concepts does",
    "clip-benchmark": "class names and templates are read from its package's files",
}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;! ]", name)[0]).lower()


def declared(requirements: list[str]) -> set[str]:
    return {canonical(requirement) for requirement in requirements}


BASE = declared(PROJECT["dependencies"])
EXTRAS = {name: declared(wanted) for name, wanted in PROJECT["optional-dependencies"].items()}


def imports() -> dict[tuple[str, str], str]:
    """(room, distribution) -> a file that imports it."""
    known = packages_distributions()
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                modules = [node.module]
            for module in modules:
                root = module.split(".")[0]
                if root in sys.stdlib_module_names or root == "open_clip_triplet":
                    continue
                names = known.get(root) or [NAMES[root]]
                found[room if room in ROOMS else "", canonical(names[0])] = str(path.relative_to(REPOSITORY))
    return found


def test_every_import_is_declared_where_it_is_used():
    missing = {
        f"{distribution} ({file})"
        for (room, distribution), file in imports().items()
        if distribution not in BASE | OPTIONAL.keys()
        and distribution not in EXTRAS.get(ROOMS.get(room, ""), set()) | EXTRAS["ray"] | EXTRAS["vllm"]
    }
    assert not missing


def test_every_declared_package_is_imported():
    used = imports()
    unused = {name for name in BASE if name not in {d for _, d in used}}
    for room, extra in ROOMS.items():
        unused |= {f"{extra}: {name}" for name in EXTRAS[extra] if (room, name) not in used}
    assert {name for name in unused if name.rpartition(" ")[2] not in INDIRECT} == set()


def test_one_version():
    assert "version" in PROJECT["dynamic"]
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert open_clip_triplet.__version__ in changelog and f"version: {open_clip_triplet.__version__}" in citation


def test_the_package_is_typed_and_its_data_files_are_listed():
    suffixes = tuple(
        pattern.removeprefix("*")
        for pattern in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"][
            "package-data"
        ]["*"]
    )
    assert (PACKAGE / "py.typed").is_file()
    left_out = [
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
        if not path.name.endswith(suffixes)
    ]
    assert not left_out


TEXTS = [
    path
    for pattern in ("open_clip_triplet/**/*.py", "tools/*.py", "docs/*.md", "README.md", "examples/**/*.[sm]*")
    for path in sorted(REPOSITORY.glob(pattern))
]


def test_no_text_installs_a_name_that_is_not_on_pypi():
    wrong = re.compile(r"pip install[^\n`]*['\" ]open_clip_triplet(?![^\n]*@ git)")
    found = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for path in TEXTS
        for line in path.read_text(encoding="utf-8").splitlines()
        if wrong.search(line)
    ]
    assert not found


def test_commands_have_one_name_in_messages():
    wrong = re.compile(r"tools/(make_shards|evaluate|inspect_shards)\.py")
    found = [
        str(path.relative_to(REPOSITORY))
        for path in sorted(PACKAGE.rglob("*.py"))
        if wrong.search(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_the_losses_alone_cost_torch_alone():
    code = (
        "import sys; from open_clip_triplet.losses import triplet_clip_loss; "
        "print(sorted({'transformers', 'timm', 'open_clip', 'webdataset', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("script", sorted(REPOSITORY.glob("**/*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse(script):
    if ".venv" not in script.parts:
        subprocess.run(["bash", "-n", str(script)], check=True)
