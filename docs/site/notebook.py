"""The tutorial as a page: the site's ``tutorial.md`` is made of ``tutorial.ipynb``, with what cells show."""

import json
from base64 import b64decode
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the page of every notebook, and its pictures."""
    from mkdocs.structure.files import File

    for path in Path(config.docs_dir).glob("*.ipynb"):
        page, pictures = as_markdown(path)
        for name, content in {f"{path.stem}.md": page, **pictures}.items():
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to a notebook lead to its page."""
    return markdown.replace(".ipynb)", ".md)")


def as_markdown(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by their names."""
    parts, pictures = [], {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        for output in cell.get("outputs", ()):
            shown = output.get("data") or {"text/plain": output["text"]}
            if "image/png" in shown:
                name = f"images/{notebook.stem}_{len(pictures) + 1}.png"
                pictures[name] = b64decode(shown["image/png"])
                parts.append(f"![What the cell shows]({name})")
            elif "text/markdown" in shown:
                parts.append("".join(shown["text/markdown"]))
            else:
                parts.append(f"```text\n{''.join(shown['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts), pictures
