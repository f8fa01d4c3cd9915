"""Give every chapter the same first code cell, which installs the library where a chapter is opened in Colab; --check compares.

It stands behind the title, is hidden in the book, and does nothing elsewhere."""
import argparse
import sys

import nbformat
from nbdev.clean import nbdev_clean

from book import NBS, chapters, published, read, settings


def guard() -> str:
    "The cell. While the book has no public address it says so, rather than install whatever stands there."
    install = f"%pip install --quiet git+{settings()['git_url']}@{settings()['branch']}"
    told = 'print("Shimmer has no public address yet: upload its folder, then run `%pip install FOLDER` with the path you put it at")'
    return f'''#| hide
if "google.colab" in str(get_ipython()):
    {install if published() else told}'''


def guarded(nb) -> bool:
    "Whether the guard is the first code cell, and the only one that installs the library."
    code = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    return code[:1] == [guard()] and sum("google.colab" in source for source in code) == 1


def missing() -> list[str]:
    "Chapters without the guard, or with another."
    return [path.name for path in chapters() if not guarded(read(path))]


def main(check: bool = False) -> int:
    "Write the guard where it is missing; return 1 where it is and was not written."
    for name in (left := missing()):
        print(f"nbs/{name} {'has no guard cell: run `make guard`' if check else 'was given the guard cell'}", file=sys.stderr)
        if check: continue
        nb = read(NBS / name)
        nb.cells = [c for c in nb.cells if not (c.cell_type == "code" and "google.colab" in c.source)]
        nb.cells.insert(1, nbformat.v4.new_code_cell(guard()))
        nbformat.write(nb, NBS / name)
        nbdev_clean.__wrapped__(str(NBS / name))
    return 1 if check and left else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    sys.exit(main(parser.parse_args().check))
