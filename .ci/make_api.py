"""A page of the book for every module of the library: signatures, one-line descriptions, parameters, links to the source.

Read from the module's text with `ast`; nothing is imported. What a parameter means is the comment that stands behind it."""
import ast
import io
import re
import tokenize
from pathlib import Path

from book import NBS, ROOT, chapters, name, source_url

API = NBS / "api"


class Module:
    "A module's syntax tree, and the comment on each of its lines."
    def __init__(self, path: Path):
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.lines = self.text.encode().splitlines(keepends=True)
        self.tree = ast.parse(self.text)
        self.comments: dict[int, str] = {}  # by line; one that goes on below, further in, belongs to where it began
        self.columns: dict[int, int] = {}
        began = indent = last = 0
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type != tokenize.COMMENT or token.string.startswith("# %%"): continue
            (row, column), said = token.start, token.string.lstrip("# ").strip()
            self.columns[row] = column
            alone = not token.line[:column].strip()
            if alone and began and row == last + 1 and column > indent: self.comments[began] += f" {said}"
            else:
                self.comments[row] = said
                began, indent = (0, 0) if alone else (row, len(token.line) - len(token.line.lstrip()))
            last = row

    def code(self, node: ast.AST | None) -> str:
        "A node as it is written, on one line."
        if node is None: return ""
        lines = self.lines[node.lineno - 1 : node.end_lineno]
        lines[-1] = lines[-1][: node.end_col_offset]
        for row in range(node.lineno, node.end_lineno):
            if row in self.columns: lines[row - node.lineno] = lines[row - node.lineno].decode()[: self.columns[row]].encode()
        lines[0] = lines[0][node.col_offset :]
        one = " ".join(b"".join(lines).decode().split())
        return re.sub(r",? ([)\]}])", r"\1", re.sub(r"([(\[{]) ", r"\1", one))

    def said(self, node: ast.stmt) -> str:
        "The comment on the first or last line of a declaration, or else the one right above it."
        above = node.lineno - 1
        alone = above in self.columns and not self.lines[above - 1][: self.columns[above]].strip()
        return self.comments.get(node.end_lineno) or self.comments.get(node.lineno) or (self.comments.get(above, "") if alone else "")

    def exported(self) -> list[ast.stmt]:
        "The statements that define what `__all__` names, in the order of the module."
        assigned = next(n for n in self.tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")
        names = set(ast.literal_eval(assigned.value))
        return [n for n in self.tree.body if names & set(defined(n))]


def defined(node: ast.stmt) -> list[str]:
    "The names that a statement gives a meaning."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return [node.name]
    if isinstance(node, ast.AnnAssign): return [node.target.id] if isinstance(node.target, ast.Name) else []
    if not isinstance(node, ast.Assign): return []
    parts = [part for target in node.targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [part.id for part in parts if isinstance(part, ast.Name)]  # a method put into a class names nothing


def cell(text: str) -> str:
    "Text as markdown shows it unchanged, also in a table: outside code spans an @ is no citation, a bracket no link, a line no edge."
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(code_span(p.strip("`")) if p.startswith("`") else re.sub(r"([|@\[\]<*_$~^])", r"\\\1", p) for p in pieces)


def code_span(text: str) -> str:
    "Code in a cell of a table; where it has a bar, as HTML, since in a table's code span a bar's backslash is shown."
    if "|" not in text: return f"`{text}`" if text else ""
    return "<code>" + "".join(f"&#{ord(c)};" if c in "|[]*_<>&$~^\\" else c for c in text) + "</code>"


def rows(entries: list[tuple[str, str, str, str]]) -> str:
    "A table of names, types, defaults and meanings, without the columns that nothing stands in."
    columns = [k for k in range(4) if k == 0 or any(e[k] for e in entries)]
    head = ["name", "type", "default", "meaning"]
    lines = [[head[k] for k in columns], ["---"] * len(columns), *([(cell if k == 3 else code_span)(e[k]) for k in columns] for e in entries)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parameters(module: Module, function: ast.FunctionDef) -> list[tuple[str, str, str, str]]:
    "Name, type, default and meaning of each parameter but `self`."
    args = function.args
    plain = args.posonlyargs + args.args
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults + args.kw_defaults
    every = list(zip(plain + args.kwonlyargs, defaults))
    every += [(arg, None) for arg in (args.vararg, args.kwarg) if arg]
    last_on = {}
    for arg, default in every: last_on[(default or arg).end_lineno] = arg
    signs = {args.vararg: "*", args.kwarg: "**"}
    entries = []
    for arg, default in every:
        line = (default or arg).end_lineno
        if arg.arg in ("self", "cls"): continue
        meaning = module.comments.get(line, "") if last_on[line] is arg and line != function.body[0].lineno and line < end_of_head(module, function) else ""
        entries.append((signs.get(arg, "") + arg.arg, module.code(arg.annotation), module.code(default), meaning))
    return entries


def end_of_head(module: Module, function: ast.FunctionDef) -> int:
    "The line on which the body's colon stands."
    lines, line = module.text.splitlines(), function.body[0].lineno - 1
    while line > function.lineno and not lines[line - 1].strip(): line -= 1
    return max(line, function.lineno)


def returned(module: Module, function: ast.FunctionDef) -> str:
    "What a function returns, and what the comment behind it says."
    if not function.returns: return ""
    says = module.comments.get(function.returns.end_lineno, "")
    return f"Returns `{module.code(function.returns)}`" + (f": {cell(says)}." if says else ".")


def signature(module: Module, name: str, function: ast.FunctionDef | None) -> str:
    "Names and defaults, as a call is written."
    if function is None: return name
    parts, args = [], function.args
    for shown, _, default, _ in parameters(module, function):
        if args.kwonlyargs and shown == args.kwonlyargs[0].arg and not args.vararg: parts.append("*")
        parts.append(shown + (f"={default}" if default else ""))
    one = f"{name}({', '.join(parts)})"
    return one if len(one) <= 100 else f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"


def source_link(module: Module, node: ast.stmt) -> str:
    "A link to the lines that define something, or, while the book is not published, where they are."
    url = source_url(f"shimmer/{module.path.name}", node.lineno)
    return f"[source]({url})" if url else f"Source: line {node.lineno}."


def described(module: Module, level: str, name: str, node: ast.FunctionDef | ast.ClassDef, function: ast.FunctionDef | None, fields: list) -> str:
    "Heading, signature, description and parameters of a function or class."
    kind = "" if isinstance(node, ast.FunctionDef) else "class "
    doc = " ".join((ast.get_docstring(node) or "").split())
    is_property = isinstance(node, ast.FunctionDef) and any("property" in module.code(d) for d in node.decorator_list)
    link = source_link(module, node)
    parts = [f"{level} `{name}` {{#{name}}}", f"```python\n{kind}{name if is_property else signature(module, name, function)}\n```", f"{cell(doc)}{' ' if doc else ''}{link}"]
    entries = fields or (parameters(module, function) if function else [])
    if entries: parts.append(rows(entries))
    if isinstance(node, ast.FunctionDef) and (says := returned(module, node)): parts.append(says)
    return "\n\n".join(parts)


def fields_of(module: Module, node: ast.ClassDef) -> list[tuple[str, str, str, str]]:
    "Name, type, default and meaning of a class's declared fields."
    return [(n.target.id, module.code(n.annotation), module.code(n.value), module.said(n)) for n in node.body if isinstance(n, ast.AnnAssign)]


def documented(module: Module, node: ast.stmt) -> str:
    "What the page says of one exported statement."
    if isinstance(node, ast.FunctionDef):
        return described(module, "##", node.name, node, node, [])
    if isinstance(node, ast.ClassDef):
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        made = next((m for m in methods if m.name == "__init__"), None)
        parts = [described(module, "##", node.name, node, made, fields_of(module, node))]
        parts += [described(module, "###", f"{node.name}.{m.name}", m, m, []) for m in methods if not m.name.startswith("_") or m.name == "__call__"]
        return "\n\n".join(parts)
    value, says = module.code(node.value), module.said(node)
    shown = value if len(value) <= 200 else value[:200].rsplit(" ", 1)[0] + " …"
    name = ", ".join(defined(node))
    link = source_link(module, node)
    return f"## `{name}` {{#{defined(node)[0]}}}\n\n```python\n{name} = {shown}\n```\n\n{cell(says)}{' ' if says else ''}{link}"


def chapter_of(name: str) -> Path:
    "The notebook that exports a module; FileNotFoundError where none does."
    found = [path for path in chapters() if path.stem.partition("_")[2] == name]
    if not found:
        raise FileNotFoundError(f"shimmer/{name}.py has no chapter nbs/NN_{name}.ipynb and no nbs/appendix_{name}.ipynb")
    return found[0]


def page(path: Path) -> str:
    "The page of one module."
    module, chapter = Module(path), chapter_of(path.stem)
    url = source_url(f"shimmer/{path.name}")
    source = f"[shimmer/{path.name}]({url})" if url else f"`shimmer/{path.name}`"
    about = " ".join((ast.get_docstring(module.tree) or "").split())
    kind = "chapter" if chapter.name[0].isdigit() else "appendix"
    opening = f"# shimmer.{path.stem} {{.unnumbered}}\n\n{cell(about)} Derived in {kind} [{name(chapter)}](../{chapter.name}); the source is {source}."
    return "\n\n".join([opening, *(documented(module, node) for node in module.exported())]) + "\n"


def pages() -> dict[Path, str]:
    "The text of every module's page, by where it belongs, in the order of the chapters."
    modules = [p for p in (ROOT / "shimmer").glob("*.py") if not p.name.startswith("_")]
    return {API / f"{p.stem}.qmd": page(p) for p in sorted(modules, key=lambda p: chapter_of(p.stem).name)}
