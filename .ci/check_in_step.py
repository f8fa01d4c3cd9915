"""Fail unless the notebooks are clean, everything made from notebooks, reports and modules is in step, and the book's text is sound.

Works on a temporary copy, so that nothing in the working tree is touched."""
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from book import NBS, ROOT, notebooks
from check_book import problems
from make_pages import main as make_pages
from make_readme import main as make_readme

BIN = Path(sys.executable).parent


def differing(ours: Path, theirs: Path, pattern: str) -> list[Path]:
    "Names under either folder whose file is missing or different in the other."
    names = {f.relative_to(top) for top in (ours, theirs) for f in top.glob(pattern)}
    same = lambda n: (ours / n).exists() and (theirs / n).exists() and filecmp.cmp(ours / n, theirs / n, shallow=False)
    return sorted(n for n in names if not same(n))


def main() -> int:
    "Print what is out of step and how to mend it; return 1 if anything is."
    if not notebooks():
        print("no notebooks in nbs/", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / ROOT.name
        shutil.copytree(NBS, copy / "nbs", symlinks=True)
        shutil.copy(ROOT / "settings.ini", copy)
        (copy / "shimmer").mkdir()
        if (ROOT / "shimmer/__init__.py").exists():
            shutil.copy(ROOT / "shimmer/__init__.py", copy / "shimmer")
        for command in ("nbdev_export", "nbdev_clean"):
            subprocess.run([BIN / command], cwd=copy, check=True, env={**os.environ, "PYTHONPATH": ""})
        unclean = differing(NBS, copy / "nbs", "**/*.ipynb")
        stale = differing(ROOT / "shimmer", copy / "shimmer", "**/*.py")
    without = {p.stem for p in (NBS / "evals").glob("*.ipynb")} ^ {p.stem for p in (NBS / "evals/results").glob("*.json")}
    for name in unclean:
        print(f"nbs/{name} is not clean: run `.venv/bin/nbdev_clean`", file=sys.stderr)
    for name in stale:
        print(f"shimmer/{name} is not what the notebooks export: run `.venv/bin/nbdev_export` (delete a module that has no notebook)", file=sys.stderr)
    for name in sorted(without):
        print(f"nbs/evals/{name}.ipynb and nbs/evals/results/{name}.json belong together and one is missing: run `make sync NB=evals/{name} RUN=1`, or delete the other", file=sys.stderr)
    unsound = problems()
    for problem in unsound:
        print(problem, file=sys.stderr)
    wrong = any([unclean, stale, without, unsound, make_pages(check=True), make_readme(check=True)])
    if not wrong:
        print("The notebooks are clean; shimmer/, the tables, the pages and README.md are in step with them; every evaluation has its report; no link is dead, no figure without words.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
