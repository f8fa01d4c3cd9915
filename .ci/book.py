"""Where the book's parts are, and what its markdown refers to; shared by the scripts beside this file."""
import json
import re
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from urllib.parse import quote

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
RESULTS = NBS / "evals" / "results"


@cache
def settings() -> dict[str, str]:
    "What settings.ini says."
    parser = ConfigParser()
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def published() -> bool:
    "Whether settings.ini says that its git_url leads to this book; until then nothing links there or installs from there."
    return settings()["published"] == "True"


def source_url(path: str, line: int | None = None) -> str | None:
    "Where a file stands in the repository on the web; None while it is not published."
    if not published(): return None
    return f"{settings()['git_url']}/blob/{settings()['branch']}/{quote(path)}" + (f"#L{line}" if line else "")


def colab_url(path: str) -> str:
    "Where Colab opens a notebook of the repository; the path counts from its root."
    return f"https://colab.research.google.com/github/{settings()['user']}/{settings()['repo']}/blob/{settings()['branch']}/{quote(path)}"


def contents() -> list[tuple[str, list[str]]]:
    "The parts of the book, each with its files, as _quarto.yml lists them; a file outside every part has a part without a name."
    book = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["book"]["chapters"]
    files = lambda chapters: [chapter["href"] if isinstance(chapter, dict) else chapter for chapter in chapters]
    return [(item["part"], files(item["chapters"])) if isinstance(item, dict) and "part" in item else ("", files([item])) for item in book]


def report(name: str) -> dict:
    "What an evaluation measured; FileNotFoundError where it has no report."
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"nbs/evals/results/{name}.json does not exist: run `make sync NB=evals/{name} RUN=1`, or take out what names it")
    return json.loads(path.read_text(encoding="utf-8"))


def chapters() -> list[Path]:
    "The chapters in their order, then the appendices."
    return sorted(NBS.glob("[0-9][0-9]_*.ipynb")) + sorted(NBS.glob("appendix_*.ipynb"))


def notebooks() -> list[Path]:
    "The chapters in order, then the evaluation notebooks."
    return sorted(NBS.glob("*.ipynb")) + sorted((NBS / "evals").glob("*.ipynb"))


def read(path: Path):
    "A notebook with its outputs."
    return nbformat.read(path, as_version=4)


def title(path: Path) -> str:
    "The title of a notebook or page: its first heading."
    text = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown") if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    return re.search(r"^# (.*?)\s*(\{.*\})?$", text, re.MULTILINE)[1]


def name(path: Path) -> str:
    "What a chapter or page is called where it is linked: its title without the number."
    return re.sub(r"^\d\d ", "", title(path))


def promise(path: Path) -> str:
    "What a notebook says in one line under its title."
    found = re.search(r"^> (.*)$", next(c.source for c in read(path).cells if c.cell_type == "markdown"), re.MULTILINE)
    if not found:
        raise ValueError(f"{path.relative_to(ROOT)} opens without a promise: under its title stands one line that begins with `> `")
    return found[1]


def references() -> dict[str, dict[str, str]]:
    "The fields of each entry of references.bib, by key."
    text = (NBS / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"@\w+\{(\w+),(.*?)\n\}", text, re.DOTALL)
    return {key: dict(re.findall(r"(\w+)\s*=\s*\{(.*)\}", body)) for key, body in entries}


def prose(source: str) -> str:
    "Markdown without its code blocks and code spans, where an @ is no reference."
    return re.sub(r"```.*?```|`[^`\n]*`", "", source, flags=re.DOTALL)
