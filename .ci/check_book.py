"""What must hold of the book as text: contents, citations, labels, figures, links. Each check returns what is wrong, in sentences."""
import re
from collections import Counter
from functools import cache
from pathlib import Path

import yaml

from book import NBS, ROOT, contents, notebooks, prose, read, references, title

PROJECT_KEYS = {"type", "output-dir", "resources"}
BOOK_KEYS = {"title", "subtitle", "description", "author", "repo-url", "repo-branch", "repo-subdir", "repo-actions", "search", "page-navigation", "chapters"}
TOP_KEYS = {"project", "book", "bibliography", "link-citations", "crossref", "execute", "format"}
LINK = re.compile(r'(?:\]\(|(?:src|href)=")(?![a-z][a-z0-9+.-]*:|/)([^)"\s]+)')


def pages() -> list[Path]:
    "The pages of the book that are not notebooks."
    return sorted(NBS.glob("*.qmd")) + sorted(NBS.glob("api/*.qmd"))


@cache
def markdown(path: Path) -> str:
    "The markdown of a notebook or page."
    if path.suffix != ".ipynb": return path.read_text(encoding="utf-8")
    return "\n\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")


def named(path: Path) -> str:
    "A file as problems name it."
    return path.relative_to(ROOT).as_posix()


def check_contents() -> list[str]:
    "Every notebook and page is in _quarto.yml once, and every chapter named there exists; the keys are ones that are known."
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    known = [("", config, TOP_KEYS), ("project ", config["project"], PROJECT_KEYS), ("book ", config["book"], BOOK_KEYS)]
    problems = [f"_quarto.yml has the unknown {where}key {key!r}" for where, part, keys in known for key in part if key not in keys]
    listed = Counter(file for _, files in contents() for file in files)
    problems += [f"_quarto.yml names {file} {n} times" for file, n in listed.items() if n > 1]
    found = {p.relative_to(NBS).as_posix() for p in (*notebooks(), *pages())}
    problems += [f"_quarto.yml names {file}, which does not exist" for file in sorted(set(listed) - found)]
    return problems + [f"{file} is in no chapter of _quarto.yml" for file in sorted(found - set(listed))]


def check_names() -> list[str]:
    "Chapters have their number in title and sidebar, and wherever else one is mentioned it is a link by its name."
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    shown = {item["href"]: item.get("text") for part in config["book"]["chapters"] if isinstance(part, dict) and "part" in part for item in part["chapters"] if isinstance(item, dict)}
    problems = []
    for path in sorted(NBS.glob("[0-9][0-9]_*.ipynb")):
        if not title(path).startswith(f"{path.name[:2]} "): problems.append(f"{named(path)}: its title {title(path)!r} doesn't begin with its number")
        if shown.get(path.name) != title(path): problems.append(f"_quarto.yml: the text of {path.name} is {shown.get(path.name)!r} and its title {title(path)!r}")
    for path in (*notebooks(), *pages()):
        for found in re.findall(r"[Cc]hapters? \[?\d\d\b.{0,30}|\[\d\d\]\(.{0,30}", prose(markdown(path))):
            problems.append(f"{named(path)}: {found!r} names a chapter by its number: link it by its name")
    return problems


def check_order() -> list[str]:
    "No chapter uses a module that a later one builds; what an appendix builds may be used anywhere."
    builds = {path.stem[3:]: path.stem[:2] for path in sorted(NBS.glob("[0-9][0-9]_*.ipynb"))}
    problems = []
    for path in sorted(NBS.glob("[0-9][0-9]_*.ipynb")):
        code = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
        used = set(re.findall(r"^\s*(?:from|import) shimmer\.(\w+)", code, flags=re.MULTILINE))
        later = sorted(module for module in used if builds.get(module, "") > path.stem[:2])
        problems += [f"{named(path)}: it uses shimmer.{module}, which {builds[module]}_{module}.ipynb builds later: move the cell there, or show it with what is known" for module in later]
    return problems


def check_references() -> list[str]:
    "Every citation has an entry, every cross-reference a label, every label one place; every source is cited."
    problems, labels, uses = [], [], []
    for path in (*notebooks(), *pages()):
        uses += [(named(path), key) for key in re.findall(r"(?<![\w.\\])@([A-Za-z][\w-]*)", prose(markdown(path)))]
        labels += re.findall(r"\{#((?:fig|tbl|sec|eq|lst)-[\w-]+)", markdown(path))
        if path.suffix == ".ipynb":
            labels += re.findall(r"^#\|\s*label:\s*(\S+)", "\n".join(c.source for c in read(path).cells), re.MULTILINE)
    keys = set(references())
    problems += [f"references.bib: {key} has no {field}" for key, entry in references().items() for field in ("title", "author", "year") if field not in entry]
    problems += [f"{name}: @{key} is neither in references.bib nor a label" for name, key in uses if key not in keys | set(labels)]
    problems += [f"references.bib has {key}, which nothing cites" for key in sorted(keys - {key for _, key in uses})]
    return problems + [f"the label {label} stands {n} times" for label, n in Counter(labels).items() if n > 1]


def check_figures() -> list[str]:
    "Every picture has a label that begins with fig-, a caption and a text for those who can't see it."
    problems = []
    for path in notebooks():
        for cell in read(path).cells:
            if cell.cell_type == "markdown":
                for shown, target, attributes in re.findall(r"!\[(.*?)\]\(([^)]+)\)(\{[^}]*\})?", cell.source, re.DOTALL):
                    if not shown: problems.append(f"{named(path)}: {target} has no caption")
                    if "#fig-" not in attributes or "fig-alt=" not in attributes: problems.append(f"{named(path)}: {target} needs {{#fig-… fig-alt=\"…\"}} behind it")
                continue
            data = [output.get("data", {}) for output in cell.get("outputs", [])]
            drawn = any(kind.startswith("image/") for d in data for kind in d)
            label = re.search(r"^#\|\s*label:\s*(\S+)", cell.source, re.MULTILINE)
            first = cell.source.strip().splitlines()[0] if cell.source.strip() else ""
            if drawn and not (label and label[1].startswith("fig-")):
                problems.append(f"{named(path)}: a cell draws without `#| label: fig-…`; it begins {first!r}")
            if drawn or (label and label[1].startswith("fig-")):
                problems += [f"{named(path)}: {label[1] if label else first!r} has no {word}" for word in ("fig-cap", "fig-alt") if f"#| {word}:" not in cell.source]
    return problems


def slug(heading: str) -> str:
    "The anchor that pandoc gives a heading."
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]", r"\1", re.sub(r"\{.*\}\s*$", "", heading))
    text = re.sub(r"[^\w\s.-]", "", text.lower()).strip()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", text)) or "section"


def github_slug(heading: str) -> str:
    "The anchor that GitHub gives a heading."
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@cache
def anchors(path: Path) -> set[str]:
    "The places in a notebook or page that a link may point to."
    text = re.sub(r"```.*?```", "", markdown(path), flags=re.DOTALL)
    headings = re.findall(r"^#{1,6} (.+?)\s*$", text, re.MULTILINE)
    found = {*map(slug, headings), *re.findall(r"\{#([\w.-]+)", text), *re.findall(r'id="([\w-]+)"', text)}
    if path.suffix == ".md": found |= set(map(github_slug, headings))
    if path.suffix == ".ipynb": found |= set(re.findall(r"^#\|\s*label:\s*(\S+)", "\n".join(c.source for c in read(path).cells), re.MULTILINE))
    return found


def check_links() -> list[str]:
    "Every relative link leads to a file that exists, and to a place in it that exists."
    problems = []
    others = [p for p in (ROOT / "README.md", ROOT / ".github/CONTRIBUTING.md") if p.exists()]
    for path in (*notebooks(), *pages(), *others):
        for link in LINK.findall(prose(markdown(path))):
            file, _, place = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            if not target.exists():
                problems.append(f"{named(path)}: {link} leads to no file")
            elif place and target.suffix in (".ipynb", ".qmd", ".md") and place not in anchors(target):
                problems.append(f"{named(path)}: {link} leads to no place in {target.name}")
    return problems


def check_chapters() -> list[str]:
    "Every chapter opens with a promise and with what is missing, and closes with takeaways, exercises with folded answers, and references."
    problems = []
    for path in sorted(NBS.glob("[0-9][0-9]_*.ipynb")):
        text = markdown(path)
        for what, pattern in (("promise (`> …` under the title)", r"\A# .+\n+> "), ("What is missing", r"What is missing"), ("Takeaways", r"^## Takeaways$"), ("Exercises", r"^## Exercises$"), ("References", r"^## References$")):
            found = len(re.findall(pattern, text, re.MULTILINE))
            if not found: problems.append(f"{named(path)} has no {what}")
            if found > 1 and what.endswith("s"): problems.append(f"{named(path)} has {what} {found} times")
        exercises = text.partition("\n## Exercises\n")[2].partition("\n## References")[0]
        numbered = lambda text: len(re.findall(r"^(?:\*\*)?\d+\.", text, re.MULTILINE))
        folds = re.findall(r"<details>.*?</details>", exercises, re.DOTALL)
        asked = numbered(re.sub(r"<details>.*?</details>", "", exercises, flags=re.DOTALL))
        answered = len(folds) if len(folds) != 1 else max(1, numbered(folds[0]))
        if asked != answered: problems.append(f"{named(path)}: {asked} exercises, {answered} folded answers")
    return problems


CHECKS = (check_contents, check_names, check_order, check_references, check_figures, check_links, check_chapters)


def problems() -> list[str]:
    "All that is wrong."
    return [problem for check in CHECKS for problem in check()]
