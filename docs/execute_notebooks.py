"""Run the notebooks of the documentation and keep their outputs: ``python docs/execute_notebooks.py`` (needs nbclient and ipykernel).

Metadata that differ from run to run are left out, so that a notebook whose outputs did not change stays the same file.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def main() -> None:
    for path in sorted((HERE / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(HERE.parent)}}).execute()
        for cell in notebook.cells:
            cell.metadata.clear()
        notebook.metadata["language_info"] = {"name": "python"}
        path.write_text(nbformat.writes(notebook, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.relative_to(HERE.parent)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
