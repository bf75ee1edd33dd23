"""Execute the tutorial, and keep what its cells show, but for the progress and the seconds.

    python docs/execute.py

Needs the extra ``docs``. What the notebook writes goes to a temporary folder; its pictures of images
by their exits are also in ``images``.
"""

import re
import tempfile
from base64 import b64decode
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parent
NOTEBOOK = DOCS / "tutorial.ipynb"
PICTURES = DOCS / "images" / "exits.png", DOCS / "images" / "photographs_by_exit.png"


def main() -> None:
    """Execute every cell in order; the first that fails ends the program with its error."""
    notebook = nbformat.read(NOTEBOOK, 4)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").symlink_to(DOCS / "images")
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, resources=where, coalesce_streams=True).execute()
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [kept(output) for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, NOTEBOOK)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    drawn = [output for output in outputs if output.output_type == "display_data"]
    for path, output in zip(PICTURES, drawn, strict=True):
        path.write_bytes(b64decode(output.data["image/png"]))


def kept(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Of a picture the picture alone; of a table all but how long it took."""
    for kind, shown in output.get("data", {}).items():
        output.data[kind] = re.sub(r"\n\| Wall time.*", "", shown)
    if "image/png" in output.get("data", {}):
        output.data = {"image/png": output.data["image/png"]}
    return output


if __name__ == "__main__":
    main()
