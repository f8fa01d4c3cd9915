"""Write what is made of something else: blocks of the preface and of the reports, the pages of results, claims, architectures and
the library, and CONTRIBUTING.md, which GitHub looks for; --check compares.

A block is a markdown cell of nbs/index.ipynb or of a report, or a stretch of a .qmd page, that begins with `<!-- made: NAME -->`. In a page it
ends with `<!-- end -->`."""
import argparse
import re
import sys
from functools import partial
from pathlib import Path

import nbformat
import yaml

from book import NBS, ROOT, published, read, report, settings
from make_api import API, pages
from make_readme import for_root
from summary import summary
from findings import FINDINGS, good_for, six, verdict
from tables import architectures_table, claims_page, gpu_table, map_table, measured_table, reports_table, results_table

MADE = re.compile(r"<!-- made: (\w+) -->")
FILLED = (NBS / "index.ipynb", *sorted((NBS / "evals").glob("*.ipynb")))
PAGES = ("claims.qmd", "architectures.qmd", "results.qmd")


def citation() -> str:
    "How to cite the book, from CITATION.cff."
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    fields = dict(title=cff["title"], author=" and ".join(a["name"] for a in cff["authors"]), year=settings()["copyright"][:4], version=cff["version"])
    if published(): fields["url"] = settings()["git_url"]
    return "```bibtex\n@software{shimmer,\n" + ",\n".join(f"  {name:7} = {{{value}}}" for name, value in fields.items()) + "\n}\n```"


def demo() -> str:
    "What `make demo` ends in, by the report that is kept."
    return f"```text\n{summary(report('quickstart'))}\n```"


BLOCKS = {**{f"verdict_{name}": partial(verdict, name) for name in FINDINGS}, "six": six, "demo": demo, "results": results_table, "reports": reports_table, "map": map_table, "citation": citation, "claims": claims_page, "good_for": good_for, "architectures": architectures_table, "measured": measured_table, "gpu": gpu_table}


def block(name: str) -> str:
    "A block with its mark; ValueError for a name that nothing makes."
    if name not in BLOCKS:
        raise ValueError(f"<!-- made: {name} --> names no block: choose {', '.join(BLOCKS)}")
    return f"<!-- made: {name} -->\n\n{BLOCKS[name]()}"


def fill(nb) -> bool:
    "Put the blocks of a notebook's cells in step; return whether one changed."
    old = [cell.source for cell in nb.cells]
    for cell in nb.cells:
        if cell.cell_type == "markdown" and (found := MADE.match(cell.source)):
            cell.source = block(found[1])
    return old != [cell.source for cell in nb.cells]


def filled(text: str) -> str:
    "A page with its blocks in step."
    return re.sub(r"<!-- made: (\w+) -->.*?<!-- end -->", lambda m: f"{block(m[1])}\n\n<!-- end -->", text, flags=re.DOTALL)


def contributing() -> str:
    "The page for contributors as GitHub shows it."
    text = (NBS / "contributing.qmd").read_text(encoding="utf-8").replace(" {.unnumbered}", "", 1)
    return "<!-- Made from nbs/contributing.qmd by `make pages`: edit that page. -->\n\n" + for_root(text, "../nbs")


def made() -> dict[Path, str]:
    "The text of every page that is made, or has a block that is, by where it belongs."
    return {NBS / name: filled((NBS / name).read_text(encoding="utf-8")) for name in PAGES} | pages() | {ROOT / ".github/CONTRIBUTING.md": contributing()}


def main(check: bool = False) -> int:
    "Write what differs, or only say so; return 1 where something is out of step and was not written."
    stale = []
    for path in FILLED:
        if fill(nb := read(path)):
            stale.append(path)
            if not check: nbformat.write(nb, path)
    texts = made()
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    left = [path for path in API.glob("*.qmd") if path not in texts]
    for path in left if not check else ():
        path.unlink()
    for path in (*stale, *left) if check else ():
        print(f"{path.relative_to(ROOT)} is not what reports, modules and pages make: run `make pages`", file=sys.stderr)
    return 1 if check and (stale or left) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    sys.exit(main(parser.parse_args().check))
