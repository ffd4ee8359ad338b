"""An executed notebook as one HTML file that needs nothing else: no network, no script for its formulas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.preprocessors import Preprocessor, TagRemovePreprocessor
from nbformat import NotebookNode

from tokencutseg.files import atomic_write

_TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock html_head_js -%}
{%- block html_head_js_mathjax -%}{%- endblock html_head_js_mathjax -%}
{%- block html_head_js_mermaidjs -%}{%- endblock html_head_js_mermaidjs -%}
{%- block html_head_css -%}
{{ super() }}
<style>main { max-width: 60rem; margin: auto; } [mathvariant=monospace] { font-family: monospace; }
main pre { white-space: pre-wrap !important; overflow-wrap: anywhere; }
@media print { main * { overflow: visible !important; } main table { font-size: 6pt !important; }
main :is(td, th) { white-space: normal !important; padding: 1pt 2pt !important; } main img { max-height: 20cm; } }
math { font-family: "STIX Two Math", "Latin Modern Math", "Cambria Math", math; }</style>
{%- endblock html_head_css -%}
{% block codecell %}
{%- if cell.metadata.get('jupyter', {}).get('source_hidden') -%}
<details><summary style="cursor: pointer; font: var(--jp-content-font-size1) var(--jp-content-font-family);
margin: 8px 0 8px calc(var(--jp-cell-prompt-width) + 17px)">Solution, computed</summary>
{{ super() | replace('<details><summary>Answer', '<details open><summary>Answer') }}
</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{% endblock codecell %}"""
"""nbconvert's page without the scripts that it fetches; cells that JupyterLab folds are folded, with their outputs."""
_MATHS = re.compile(r"(?P<code>```.*?```|`[^`\n]*`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL)

_BOLD = {"i": 0x1D400 - ord("A"), "n": 0x1D7CE - ord("0")}
"""From a capital or a digit to Unicode's bold one; browsers draw no other bold in a formula."""


class MathML(Preprocessor):
    """LaTeX in Markdown cells, as in ``$x$`` and ``$$x$$``, becomes MathML, which browsers draw by themselves."""

    def preprocess_cell(self, cell: NotebookNode, resources: dict[str, Any], index: int) -> tuple[NotebookNode, dict]:
        if cell.cell_type == "markdown":
            cell.source = _MATHS.sub(_mathml, cell.source)
        return cell, resources


def _mathml(found: re.Match[str]) -> str:
    if found["code"]:
        return found["code"]
    text = convert(found["block"] or found["inline"], display="block" if found["block"] else "inline")
    text = re.sub(r'<m(i|n) mathvariant="bold">(\w)', lambda m: f"<m{m[1]}>{chr(ord(m[2]) + _BOLD[m[1]])}", text)
    return text.replace(r"\_", "_")  # as in \texttt{a\_b}


def write_html(executed: Path) -> None:
    """Write ``<name>.html`` beside an executed notebook ``<name>.ipynb``, without papermill's cell of parameters, which
    holds the paths of one machine."""
    without_paths = TagRemovePreprocessor(remove_cell_tags={"injected-parameters"})
    html, _ = HTMLExporter(raw_template=_TEMPLATE, preprocessors=[without_paths, MathML]).from_filename(str(executed))
    with atomic_write(executed.with_suffix(".html")) as file:
        file.write_text(html, encoding="utf-8")
