"""What the book's pages do differently from its notebooks: the promise shown, signatures once, imports folded, frames reshaped.

Works on the notebooks that nbdev has staged in _proc/; nothing here is executed, and those in nbs/ stay as they are."""
import ast
import json
import re
from pathlib import Path

import nbformat
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_markdown_cell

LONG = 25  # lines of exported source from which it is folded
WIDE = 8  # columns from which a short frame is turned round
WIDGET = "application/vnd.jupyter.widget-view+json"


def directives(source: str) -> dict[str, str]:
    "The `#| key: value` lines of a cell."
    return {key: value.strip().strip('"') for key, value in re.findall(r"^#\|\s*([\w-]+):(.*)$", source, re.MULTILINE)}


def body(source: str) -> str:
    "A cell without its directives."
    return re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE)


def directed(source: str, **wanted: str | None) -> str:
    "A cell with these directives set, or taken out where None; the key code_fold stands for code-fold."
    keys = {key.replace("_", "-"): value for key, value in wanted.items()}
    kept = [line for line in source.splitlines() if not (found := re.match(r"#\|\s*([\w-]+):", line)) or found[1] not in keys]
    return "\n".join([*(f"#| {key}: {value}" for key, value in keys.items() if value is not None), *kept])


def statements(cell) -> list[ast.stmt]:
    "What a code cell states; nothing where it isn't plain Python."
    try: return ast.parse(body(cell.source)).body
    except SyntaxError: return []


def only_imports(cell) -> bool:
    "Whether a cell imports and does nothing else."
    found = statements(cell)
    return bool(found) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in found)


def only_helpers(cell) -> bool:
    "Whether a cell defines nothing but private functions."
    found = statements(cell)
    return bool(found) and all(isinstance(node, ast.FunctionDef) and node.name.startswith("_") for node in found)


def signature(cell) -> str:
    "The first line of what a cell defines, for the line that stands for it when it is folded."
    node = next((n for n in statements(cell) if isinstance(n, (ast.FunctionDef, ast.ClassDef))), None)
    if node is None: return "Source"
    return f"class {node.name}" if isinstance(node, ast.ClassDef) else f"{node.name}({', '.join(arg.arg for arg in node.args.args + node.args.kwonlyargs)})"


def fold(cell) -> None:
    "Fold what a reader can do without, and show the rest without a switch."
    if only_imports(cell): cell.source = directed(cell.source, code_fold="true", code_summary='"Imports"')
    elif only_helpers(cell): cell.source = directed(cell.source, code_fold="true", code_summary=f'"Helper: {signature(cell)}"')
    elif directives(cell.source).get("code-summary") == "Exported source":
        long = len(body(cell.source).splitlines()) > LONG
        cell.source = directed(cell.source, code_fold="true" if long else None, code_summary=f'"{signature(cell)}"' if long else None)


def is_documentation(cell) -> bool:
    "Whether a cell is nbdev's repetition of a signature that the source above it shows."
    return cell.cell_type == "code" and re.fullmatch(r"show_doc\(.*\)", body(cell.source).strip(), re.DOTALL) is not None


def forget_widgets(nb) -> None:
    "Take out widgets: a page would fetch their code from the network."
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        for output in cell.outputs: output.get("data", {}).pop(WIDGET, None)
        cell.outputs = [output for output in cell.outputs if output.output_type not in ("display_data", "execute_result") or set(output.data) - {"text/plain"} or output.output_type == "execute_result"]


def reshape(table: str) -> str:
    "A frame for a page: words in its head, a dash for what is missing, columns as rows where there are many columns and few rows."
    soup = BeautifulSoup(table, "html.parser")
    frame = soup.find("table")
    if frame is None or "dataframe" not in frame.get("class", []): return table
    for style in soup.find_all("style"): style.decompose()
    for cell in frame.find_all("th"):
        if cell.string: cell.string = cell.string.replace("_", " ")
    for cell in frame.find_all(["td", "th"]):
        if cell.get_text().strip() in ("NaN", "nan", "None", "<NA>"): cell.string = "–"
    frame.attrs = {"class": "dataframe table"}
    turn_round(soup, frame)
    return f'<div class="frame">{frame}</div>'


def turn_round(soup: BeautifulSoup, frame) -> None:
    "Swap rows and columns of a plain frame that is wide and short."
    rows = [row.find_all(["th", "td"]) for row in frame.find_all("tr")]
    if any(cell.get("colspan") or cell.get("rowspan") for row in rows for cell in row) or len({len(row) for row in rows}) != 1: return
    if len(rows[0]) - 1 <= WIDE or len(rows) >= len(rows[0]): return
    texts = [[cell.decode_contents() for cell in row] for row in rows]
    cells = lambda kind, column: "".join(f"<{kind}>{text}</{kind}>" for text in column)
    head, *rest = zip(*texts)
    lines = "".join(f"<tr><th>{first}</th>{cells('td', others)}</tr>" for first, *others in rest)
    made = BeautifulSoup(f"<thead><tr>{cells('th', head)}</tr></thead><tbody>{lines}</tbody>", "html.parser")
    frame.clear()
    frame.append(made)


def show_promise(nb) -> None:
    "Put the promise, which nbdev moves into the page's metadata, back under the title."
    front = next((cell for cell in nb.cells if cell.cell_type == "raw" and cell.source.lstrip().startswith("---")), None)
    fields = yaml.safe_load(front.source.strip().strip("-")) if front else {}
    if "description" not in fields: return
    told = fields["description-meta"] = fields.pop("description")
    front.source = f"---\n{yaml.safe_dump(fields, allow_unicode=True, width=10_000)}---"
    nb.cells.insert(nb.cells.index(front) + 1, new_markdown_cell(f"::: {{.promise}}\n{told}\n:::"))


def shown_json(cell) -> list:
    "A cell, and after it the JSON that it printed, folded."
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    try: json.loads(printed)
    except ValueError: return [cell]
    cell.outputs = []
    return [cell, new_markdown_cell(f"<details><summary>The report as data</summary>\n\n```json\n{printed.strip()}\n```\n\n</details>")]


def arrange_report(nb) -> None:
    "Let a report open with its verdict and the figure that shows it, and put how it was run at its end, folded."
    verdict = next((cell for cell in nb.cells if cell.cell_type == "markdown" and "<!-- made: verdict_" in cell.source), None)
    label = re.search(r"<!-- figure: (\S+) -->", verdict.source) if verdict else None
    figure = next((cell for cell in nb.cells if cell.cell_type == "code" and label and directives(cell.source).get("label") == label[1]), None)
    run = [cell for cell in nb.cells if cell.cell_type == "code" and (only_imports(cell) or "parameters" in cell.metadata.get("tags", []))]
    for cell in run: cell.source = directed(cell.source, code_fold="true", code_summary='"Imports"' if only_imports(cell) else '"Parameters"')
    rest = [cell for cell in nb.cells if not any(cell is moved for moved in (*run, figure))]
    if figure is not None:
        figure.source = directed(figure.source, code_fold="true", code_summary='"How it is drawn"')
        rest.insert(rest.index(verdict) + 1, figure)
    data = []
    for cell in rest: data += shown_json(cell) if cell.cell_type == "code" else [cell]
    nb.cells = [*data, new_markdown_cell("## How this was run"), *run]


def join_imports(nb) -> None:
    "Make one cell of imports that follow each other."
    kept = []
    for cell in nb.cells:
        if kept and all(c.cell_type == "code" and only_imports(c) for c in (kept[-1], cell)): kept[-1].source += "\n" + body(cell.source)
        else: kept.append(cell)
    nb.cells = kept


def stage(nb, is_report: bool) -> None:
    "Make the page's notebook of what nbdev has staged."
    forget_widgets(nb)
    nb.cells = [cell for cell in nb.cells if not is_documentation(cell)]
    join_imports(nb)
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        fold(cell)
        for output in cell.outputs:
            if "text/html" in (data := output.get("data", {})): data["text/html"] = reshape("".join(data["text/html"]))
    show_promise(nb)
    if is_report: arrange_report(nb)


def problems(nb, name: str) -> list[str]:
    "What a page must not have, in sentences."
    found = []
    if "widgets" in nb.metadata: found.append(f"{name} has the state of widgets: a page would fetch their code from the network")
    if not any(cell.source.startswith("::: {.promise}") for cell in nb.cells): found.append(f"{name} doesn't show its promise")
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        if only_imports(cell) and directives(cell.source).get("code-fold") != "true": found.append(f"{name} shows its imports unfolded: {cell.source.splitlines()[0]}")
        for output in cell.outputs:
            data = output.get("data", {})
            if WIDGET in data: found.append(f"{name} shows a widget: a page would fetch its code from the network")
            if "image/gif" in data: found.append(f"{name} shows a GIF as an output, which Quarto drops: write it to a file and show that")
            for head in re.findall(r"<th[^>]*>([^<]*)</th>", data.get("text/html", "")) if "dataframe" in data.get("text/html", "") else ():
                if "_" in head or head == "NaN": found.append(f"{name} has a frame with the raw column name {head!r}")
            if re.search(r"<td[^>]*>\s*NaN\s*</td>", data.get("text/html", "")): found.append(f"{name} has a frame with NaN in it")
    return found


def stage_all(folder: Path) -> list[str]:
    "Stage every notebook of a folder that nbdev has filled; return what is wrong with the pages."
    found = []
    for path in sorted([*folder.glob("*.ipynb"), *folder.glob("evals/*.ipynb")]):
        nb = nbformat.read(path, as_version=4)
        stage(nb, path.parent.name == "evals")
        nbformat.write(nb, path)
        found += problems(nb, path.relative_to(folder).as_posix())
    return found
