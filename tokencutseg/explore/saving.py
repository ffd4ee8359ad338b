"""How JupyterLab saves the checkout's notebooks when `tokencutseg explore` has started it."""

from pathlib import Path
from typing import Any

import nbformat

from tokencutseg.files import CHECKOUT


def without_outputs(model: dict[str, Any], path: str, contents_manager: Any, **_: Any) -> None:
    """Jupyter's hook before it saves: outputs, and what else running and folding leave in a notebook, stay out.

    To open and run a notebook then changes no file, and an edit changes its own lines. Notebooks elsewhere are saved
    whole.
    """
    file = Path(contents_manager.root_dir, path.strip("/"))
    if model["type"] != "notebook" or CHECKOUT is None or file.parent != CHECKOUT / "notebooks" or not file.is_file():
        return
    before = nbformat.read(file, as_version=4)
    metadata = {cell.id: cell.metadata for cell in before.cells}
    model["content"]["metadata"] = before.metadata
    for cell in model["content"]["cells"]:
        cell["metadata"] = metadata.get(cell["id"], cell["metadata"])
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
