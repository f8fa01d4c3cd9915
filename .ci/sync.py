"""Write edited text twins (pct/) back into their notebooks (nbs/), run what changed, clean, export, make the pages and the README.

Ids and outputs of unchanged cells are kept. A notebook is run, from its own folder, when its code changed;
evaluation notebooks only when they are named, from the root, and their report.json is kept beside them in
nbs/evals/results/. A notebook whose run fails is left as it was."""
import argparse
import json
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.config import add_init
from nbdev.doclinks import _build_modidx
from nbdev.export import nb_export

from book import NBS, RESULTS, ROOT, read
from make_pages import fill
from make_pages import main as make_pages
from make_readme import main as make_readme

PCT = ROOT / "pct"


def code(nb) -> list[str]:
    "The sources of the code cells."
    return [c.source for c in nb.cells if c.cell_type == "code"]


def cells(nb) -> list[tuple]:
    "All that a twin can change of a notebook."
    return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in nb.cells]


def drop_warnings(nb) -> None:
    "Take out what a run wrote to stderr: it names paths of the machine, and says nothing to a reader."
    for cell in nb.cells:
        if cell.cell_type == "code": cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]


def keep_report(name: str) -> None:
    "Put what an evaluation has just written, and when and with what it was made, where the book reads it."
    report = json.loads((ROOT / "reports" / name / "report.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    report["made"] = {"date": date.today().isoformat(), "commit": commit, "torch": version("torch")}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


def sync(twin: Path, named: bool, run: bool) -> bool:
    "Bring one notebook in step with its twin; return whether it was written."
    name = twin.relative_to(PCT).with_suffix("")
    path, is_eval = NBS / name.with_suffix(".ipynb"), name.parts[0] == "evals"
    old = read(path) if path.exists() else None
    new = jupytext.read(twin, fmt="py:percent")
    if old:
        new = combine_inputs_with_outputs(new, old, "py:percent")
    new.metadata.pop("jupytext", None)
    changed = run or not old or code(old) != code(new)
    runs = changed and (named or not is_eval)
    if not (is_eval and runs): fill(new)  # a report that is about to be made opens with its own figures
    if old and cells(old) == cells(new) and not run:
        return False
    if old and not named and twin.stat().st_mtime < path.stat().st_mtime:
        print(f"{name}: the notebook is newer than its twin, left alone (make text takes its text, make sync NB={name} overwrites it)")
        return False
    if runs:
        print(f"{name}: running", flush=True)
        cwd = ROOT if is_eval else path.parent
        NotebookClient(new, timeout=None, kernel_name="python3", extra_arguments=["--log-level=ERROR"], resources={"metadata": {"path": str(cwd)}}).execute()
        drop_warnings(new)
        if is_eval:
            keep_report(name.name)
            fill(new)
    elif changed:
        print(f"{name}: written, not run; its outputs may be old (make sync NB={name} RUN=1 runs it)")
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new, path)
    nbdev_clean.__wrapped__(str(path))
    if not is_eval:
        nb_export(path, ROOT / "shimmer")
    print(f"{name}: in step", flush=True)
    return True


def main() -> None:
    "Sync the named twins, or all."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks such as 10_lira or evals/quickstart; none: all")
    parser.add_argument("--run", action="store_true", help="run them even where their code did not change")
    args = parser.parse_args()
    twins = [PCT / f"{name}.py" for name in args.names] or sorted(PCT.glob("*.py")) + sorted(PCT.glob("evals/*.py"))
    for twin in twins:
        if not twin.exists():
            sys.exit(f"pct/{twin.relative_to(PCT)} does not exist: a twin is written by `make text`, and named without its ending")
    written = [sync(twin, named=bool(args.names), run=args.run) for twin in twins]
    if any(written):
        add_init(ROOT / "shimmer")
        _build_modidx()
    make_pages()
    make_readme()
    print(f"{sum(written)} of {len(twins)} notebooks written")


if __name__ == "__main__":
    main()
