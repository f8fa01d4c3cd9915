"""Run one evaluation notebook with papermill into reports/, saying in words what it does, and make a web page of it.

The notebook's headings say how far it is, and what its cells write to standard error, such as the trainer's progress, is
passed on. A parameter is set as papermill sets it: -p seed 1."""
import argparse
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml
from papermill import execute_notebook
from papermill.engines import NBClientEngine, papermill_engines

from book import NBS, ROOT, read


class Teller:
    "Standard error, where a progress line that is written over and over shows at most once in `every` seconds unless it goes to a terminal."
    def __init__(self, stream, every: float = 20.0):
        self.stream, self.every, self.last = stream, every, 0.0

    def write(self, text: str) -> None:
        if not self.stream.isatty() and (text.startswith("\r") or not text.strip()):
            if not text.strip() or time.monotonic() - self.last < self.every: return
            self.last, text = time.monotonic(), text.strip("\r\n") + "\n"
        self.stream.write(text)
        self.stream.flush()

    def flush(self) -> None:
        self.stream.flush()


class TellingEngine(NBClientEngine):
    "papermill's own engine, which also prints each heading of the notebook when its first cell begins."
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        headings, begin, started = heading_of(nb_man.nb.cells), nb_man.cell_start, time.monotonic()
        told = [None]
        def cell_start(cell, cell_index=None, **more):
            if (heading := headings[cell_index]) != told[0] and cell.cell_type == "code":
                told[0] = heading
                print(f"{time.monotonic() - started:5.0f} s  {heading}", flush=True)
            return begin(cell, cell_index, **more)
        nb_man.cell_start = cell_start
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


def heading_of(cells: list) -> list[str]:
    "For each cell, the last heading at or before it, with its number among all."
    found, held = [], []
    for cell in cells:
        if cell.cell_type == "markdown": found += [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith(("# ", "## "))]
        held.append(len(found))
    return [f"({n} of {len(found)}) {found[n - 1]}" if n else "" for n in held]


def forget_progress(path: Path) -> None:
    "Take out of a notebook what was written over and over while it ran."
    nb = read(path)
    passing = lambda output: output.output_type == "stream" and output.name == "stderr" and output.text.startswith("\r")
    for cell in nb.cells:
        if cell.cell_type == "code": cell.outputs = [output for output in cell.outputs if not passing(output)]
    nbformat.write(nb, path)


def main() -> None:
    "Run the named evaluation; a cell that fails ends it with its error."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(path.stem for path in (NBS / "evals").glob("*.ipynb")))
    parser.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    args = parser.parse_args()
    target = ROOT / "reports" / f"{args.name}.ipynb"
    target.parent.mkdir(exist_ok=True)
    known = next((cell.source for cell in read(NBS / "evals" / f"{args.name}.ipynb").cells if "parameters" in cell.metadata.get("tags", [])), "")
    parameters = {name: yaml.safe_load(value) for name, value in args.parameters}
    if unknown := [name for name in parameters if f"{name} =" not in known and f"{name}," not in known]:
        sys.exit(f"{args.name} has no parameter {', '.join(unknown)}: choose among those in its first code cell")
    papermill_engines.register("telling", TellingEngine)
    execute_notebook(NBS / "evals" / f"{args.name}.ipynb", target, parameters=parameters, engine_name="telling", kernel_name="python3",
                     cwd=ROOT, progress_bar=False, stderr_file=Teller(sys.stderr), extra_arguments=["--log-level=ERROR"])
    forget_progress(target)
    subprocess.run([sys.executable, "-m", "nbconvert", "--log-level", "ERROR", "--to", "html", target], check=True)


if __name__ == "__main__":
    main()
