"""Write README.md from nbs/index.ipynb; with --check, fail where the two are out of step.

Hidden cells, directives and figures stay in the book; links are made to work from the root,
and citations become links to what they cite."""
import argparse
import os
import re
import sys

from nbconvert import MarkdownExporter

from book import NBS, ROOT, read, references

HEAD = "<!-- Made from nbs/index.ipynb by `make readme`: edit that notebook. -->\n\n"
LINK = re.compile(r'(\]\(|(?:src|href)=")(?![a-z]+:|#|/)([^)"#\s]+)')
CITATION = re.compile(r"\[((?:@\w+(?:;\s*)?)+)\]")


def cite(match: re.Match, bib: dict[str, dict[str, str]]) -> str:
    "Links to the cited works, by first author and year."
    works = []
    for key in re.findall(r"@(\w+)", match[1]):
        authors = bib[key]["author"].split(" and ")
        name = authors[0].split(",")[0] + (" et al." if len(authors) > 2 else f" and {authors[1].split(',')[0]}" if len(authors) == 2 else "")
        works.append(f"[{name}, {bib[key]['year']}]({bib[key]['url']})")
    return f"({'; '.join(works)})"


def for_root(source: str) -> str:
    "Markdown of nbs/ as it must read at the root."
    source = re.sub(r"^:::.*\n?", "", source, flags=re.MULTILINE)
    source = re.sub(r"(!\[.*?\]\([^)]*\))\{[^}]*\}", r"\1", source, flags=re.DOTALL)
    source = re.sub(r"@fig-[\w-]+", "the figure", source)
    source = LINK.sub(lambda m: m[1] + os.path.normpath(f"nbs/{m[2]}"), source)
    bib = references()
    return CITATION.sub(lambda m: cite(m, bib), source)


def readme() -> str:
    "The text of README.md."
    nb = read(NBS / "index.ipynb")
    kept = []
    for cell in nb.cells:
        directives = re.findall(r"^#\|\s*(.*)\n?", cell.source, flags=re.MULTILINE)
        if cell.cell_type == "raw" or "hide" in directives:
            continue
        if cell.cell_type == "markdown":
            cell.source = for_root(cell.source)
        else:
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
            cell.outputs = [o for o in cell.outputs if not any(kind.startswith("image/") for kind in o.get("data", {}))]
        kept.append(cell)
    nb.cells = kept
    nb.metadata.language_info = {"name": "python"}
    body, _ = MarkdownExporter().from_notebook_node(nb)
    return HEAD + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


def main(check: bool = False) -> int:
    "Write README.md, or only compare; return 1 where they differ."
    target, text = ROOT / "README.md", readme()
    if not check:
        target.write_text(text, encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != text:
        print("README.md is not what nbs/index.ipynb makes: run `make readme`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    sys.exit(main(parser.parse_args().check))
