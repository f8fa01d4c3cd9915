"""Where the book's parts are, and what its markdown refers to; shared by the scripts beside this file."""
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"


def notebooks() -> list[Path]:
    "The chapters in order, then the evaluation notebooks."
    return sorted(NBS.glob("*.ipynb")) + sorted((NBS / "evals").glob("*.ipynb"))


def read(path: Path):
    "A notebook with its outputs."
    return nbformat.read(path, as_version=4)


def references() -> dict[str, dict[str, str]]:
    "The fields of each entry of references.bib, by key."
    text = (NBS / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"@\w+\{(\w+),(.*?)\n\}", text, re.DOTALL)
    return {key: dict(re.findall(r"(\w+)\s*=\s*\{(.*)\}", body)) for key, body in entries}


def prose(source: str) -> str:
    "Markdown without its code blocks and code spans, where an @ is no reference."
    return re.sub(r"```.*?```|`[^`\n]*`", "", source, flags=re.DOTALL)
