"""Stage the book in _proc/, check it, and render it into _docs/ where Quarto is installed.

nbdev_docs does the same, but downloads Quarto where it is missing and wants to make the README of a book with it."""
import re
import shutil
import subprocess
import sys

from nbdev.doclinks import _build_modidx
from nbdev.quarto import proc_nbs, refresh_quarto_yml

from book import ROOT
from check_book import problems as problems_of_text
from stage import stage_all

# What smalldocs says of every Quarto book, and what is checked here instead.
EXPECTED = re.compile(r"built as a website|unknown key (?:bibliography|link-citations|crossref)|execute.enabled|format.html.(?:citation|google-scholar|html-math-method)|compiles no Sass|output-file|description-meta|a citation|a cross-reference")


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
    problems = problems_of_text() or stage_all(staged) + check_staged(staged)
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
