"""What mkdocs needs to be told: the front page is the README, and links that leave docs/ go to the repository.

CONTRIBUTING.md, the notebook and the pages of examples/results/ are pages too.

The repository's address has one place, ``[project.urls]`` of pyproject.toml.
"""

from __future__ import annotations

import re
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
#: pages and pictures of results, shown as pages of the documentation
RESULTS = "examples/results"
#: files of the repository -> their names as pages
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "examples/quickstart.ipynb": "notebook.md"}
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)(#[^)\s]*)?(\))")


def repository() -> str:
    """Address of the repository, without a slash at its end; empty until it has one."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        urls = tomllib.load(file)["project"].get("urls", {})
    return urls.get("Repository", urls.get("Homepage", "")).rstrip("/")


def on_config(config):
    config.repo_url = repository() or None
    return config


def on_files(files, config):
    """Adds the pages that are outside docs/: the README as the front page, the notebook, and the results."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        if source.endswith(".ipynb"):
            text, pictures = notebook_page(ROOT / source)
            for name, content in pictures.items():
                files.append(File.generated(config, name, content=content))
        else:
            text = _inside((ROOT / source).read_text(encoding="utf-8"), ROOT)
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / RESULTS).iterdir()):
        if path.suffix in (".md", ".png", ".csv", ".html", ".svg"):
            content = path.read_bytes()
            if path.suffix == ".md":
                content = _inside(path.read_text(encoding="utf-8"), path.parent, "results/")
            files.append(File.generated(config, f"results/{path.name}", content=content))
    return files


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, with the outputs it was saved with, and its pictures: {file name: content}."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _inside(cell.source, path.parent)
    text, resources = MarkdownExporter().from_notebook_node(notebook, {"output_files_dir": "notebook"})
    return text, resources["outputs"]


def on_page_markdown(markdown, page, config, files):
    if page.file.abs_src_path is None:  # generated above, with its links done
        return markdown
    return _inside(markdown, Path(page.file.abs_src_path).parent)


def on_page_content(html, page, config, files):
    """Docstrings name functions in Sphinx's roles, which mkdocs does not know: the name alone is left."""
    return re.sub(r":(?:func|class|mod|meth|attr|data):(?=<code>)", "", html)


def _inside(text: str, folder: Path, page: str = "") -> str:
    """Relative links of a file in ``folder``, rewritten for a page of the documentation.

    ``page`` is the page's own folder. Raises FileNotFoundError where a link leads nowhere.
    """
    up = "../" * page.count("/")

    def moved(match):
        before, target, anchor, after = match.groups()
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = (folder / target).resolve()
        if path != ROOT and ROOT not in path.parents:
            return match[0]
        name = path.relative_to(ROOT).as_posix()
        if not path.exists():
            raise FileNotFoundError(f"{folder}: link to {target}, which is not there")
        if name in PAGES:
            new = up + PAGES[name]
        elif name.startswith("docs/"):
            new = up + name.removeprefix("docs/")
        elif name.startswith(f"{RESULTS}/") and "/" not in name.removeprefix(f"{RESULTS}/"):
            new = up + "results/" + path.name
        elif not repository():
            return match[0].partition("](")[0].lstrip("![")
        else:
            kind = "tree" if path.is_dir() else "blob"
            new = f"{repository()}/{kind}/main/{name}"
        return f"{before}{new}{anchor or ''}{after}"

    parts = re.split(r"(^ *```.*?^ *```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if number % 2 else _LINK.sub(moved, part) for number, part in enumerate(parts))
