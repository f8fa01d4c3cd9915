"""Stage the book in _proc/, check it, and render it into _docs/ where Quarto is installed.

nbdev_docs does the same, but downloads Quarto where it is missing and wants to make the README of a book with it."""
import re
import shutil
import subprocess
import sys
from collections import Counter

import yaml
from nbdev.doclinks import _build_modidx
from nbdev.quarto import proc_nbs, refresh_quarto_yml

from book import NBS, ROOT, notebooks, prose, read, references

# What smalldocs says of every Quarto book, and what is checked here instead.
EXPECTED = re.compile(r"built as a website|unknown key bibliography|execute.enabled|output-file|a citation|a cross-reference")


def check_chapters() -> list[str]:
    "Every notebook is in _quarto.yml, and every chapter named there exists."
    listed = set()
    for item in yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["book"]["chapters"]:
        listed.update(item["chapters"] if isinstance(item, dict) else [item])
    found = {p.relative_to(NBS).as_posix() for p in notebooks()}
    absent = [f"_quarto.yml names {c}, which does not exist" for c in sorted(listed) if not (NBS / c).exists()]
    return absent + [f"{n} is in no chapter of _quarto.yml" for n in sorted(found - listed)]


def check_references() -> list[str]:
    "Every citation has an entry, every cross-reference a label, every label one place, every figure its words."
    problems, labels, uses = [], [], []
    for path in notebooks():
        for cell in read(path).cells:
            if cell.cell_type == "markdown":
                labels += re.findall(r"\{#((?:fig|tbl|sec|eq|lst)-[\w-]+)", cell.source)
                uses += [(path.name, key) for key in re.findall(r"(?<![\w.])@([A-Za-z][\w-]*)", prose(cell.source))]
            for label in re.findall(r"^#\|\s*label:\s*(\S+)", cell.source, re.MULTILINE):
                labels.append(label)
                for word in ("fig-cap", "fig-alt"):
                    if label.startswith("fig-") and f"#| {word}:" not in cell.source:
                        problems.append(f"{path.name}: {label} has no {word}")
    known = set(labels) | set(references())
    problems += [f"{name}: @{key} is neither in references.bib nor a label" for name, key in uses if key not in known]
    return problems + [f"the label {label} stands {n} times" for label, n in Counter(labels).items() if n > 1]


def check_staged(staged) -> list[str]:
    "What smalldocs finds in the staged book: broken links first of all."
    done = subprocess.run([sys.executable, "-m", "smalldocs.cli", "check", staged], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if not EXPECTED.search(line)]
    return lines + ([done.stderr.strip()] if "Traceback" in done.stderr else [])


def main() -> int:
    "Stage, check, render; return 1 where something is wrong."
    refresh_quarto_yml()
    _build_modidx()
    staged = proc_nbs(force=True, n_workers=0)
    problems = check_chapters() + check_references()
    problems = problems or check_staged(staged)
    for problem in problems:
        print(problem, file=sys.stderr)
    if shutil.which("quarto"):
        subprocess.run(["quarto", "render", "--no-cache"], cwd=staged, check=True)
        shutil.rmtree(ROOT / "_docs", ignore_errors=True)
        shutil.move(staged / "_docs", ROOT / "_docs")
        print("The book is rendered: _docs/index.html")
    else:
        print("Quarto was not found, so the book was staged in _proc/ and checked, not rendered.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
