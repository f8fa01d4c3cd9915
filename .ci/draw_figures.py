"""Draw the book's pictures into nbs/images/: architectures and rooms as vectors, and tales coming into being, as a player and as a GIF.

With --check nothing is written; it fails where a vector figure is not what this script draws. (Tales are not compared: a network's last digits differ between machines.)

A picture has no background of its own: boxes are light with dark text and lines are of a middle grey, so that it reads on white paper and on a dark page."""
import argparse
import ast
import filecmp
import re
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from book import NBS, ROOT

IMAGES = NBS / "images"
LINE, INK = "#808080", "#1d1d1f"
FILLS = {"canvas": "#fbe3c4", "net": "#d3e1f3", "out": "#d9ecd7", "plain": "#efefec"}  # tokens, what is trained, what comes out, the rest
STYLE = {"svg.hashsalt": "shimmer", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK}


class Box(NamedTuple):
    "Where a box lies; its sides are where arrows begin and end."
    x: float  # of the centre, in inches from the left
    y: float  # of the centre, in inches from the top
    width: float
    height: float

    @property
    def left(self): return self.x - self.width / 2, self.y
    @property
    def right(self): return self.x + self.width / 2, self.y
    @property
    def top(self): return self.x, self.y - self.height / 2
    @property
    def bottom(self): return self.x, self.y + self.height / 2

    def at(self, across: float, down: float) -> tuple[float, float]:
        "A point of the box: 0, 0 is its upper left corner and 1, 1 the lower right one."
        return self.x + (across - 0.5) * self.width, self.y + (down - 0.5) * self.height


class Sketch:
    "A drawing of boxes and arrows, measured in inches from the upper left corner."
    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width, height))
        self.ax = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, width), ylim=(height, 0))
        self.ax.set_axis_off()

    def box(self, x: float, y: float, text: str, kind: str = "net", width: float = 1.3, height: float = 0.55, **style) -> Box:
        "A box around its text, `**bold**` in its first line if so marked."
        self.ax.add_patch(FancyBboxPatch((x - width / 2 + 0.05, y - height / 2 + 0.05), width - 0.1, height - 0.1, boxstyle="round,pad=0.05,rounding_size=0.06",
                                         facecolor=FILLS[kind], edgecolor=LINE, linewidth=1.1, zorder=3, **style))
        head, _, rest = text.partition("\n")
        lines = text.count("\n") + 1
        for n, line in enumerate(text.split("\n")):
            self.ax.text(x, y + (n - (lines - 1) / 2) * 0.17, line.strip("*"), ha="center", va="center_baseline", weight="bold" if line.startswith("**") else "normal", zorder=4)
        return Box(x, y, width, height)

    def note(self, x: float, y: float, text: str, **style) -> None:
        "Words beside an arrow, on a light ground of their own."
        self.ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 8.5, "zorder": 5, "linespacing": 1.25} | style,
                     bbox={"boxstyle": "round,pad=0.18,rounding_size=0.15", "facecolor": "#ffffff", "edgecolor": "none"})

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        "A line through some points that ends in an arrow."
        *_, before, last = points
        for a, b in pairwise(points[:-1]): self.ax.plot(*zip(a, b), color=LINE, linewidth=1.5, linestyle=(0, (4, 2)) if dashed else "-", solid_capstyle="round", zorder=2)
        self.ax.add_patch(FancyArrowPatch(before, last, arrowstyle="-|>,head_length=5,head_width=2.6", mutation_scale=1, shrinkA=0, shrinkB=0, color=LINE, linewidth=1.5,
                                          linestyle=(0, (4, 2)) if dashed else "-", zorder=2, joinstyle="miter"))

    def frame(self, x: float, y: float, width: float, height: float, title: str) -> Box:
        "A dashed frame around what belongs together; x and y are its centre."
        self.ax.add_patch(FancyBboxPatch((x - width / 2 + 0.08, y - height / 2 + 0.08), width - 0.16, height - 0.16, boxstyle="round,pad=0.08,rounding_size=0.1",
                                         facecolor="none", edgecolor=LINE, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1))
        if title: self.note(x, y - height / 2, title, weight="bold")
        return Box(x, y, width, height)


def lira() -> Sketch:
    "one block, applied K times to a latent canvas, and two heads."
    s = Sketch(7.4, 2.75)
    canvas = s.box(0.8, 1.2, "**canvas**\nOnce ▢ a ▢ …\nids [B, L]", "canvas", 1.4, 0.8)
    embed = s.box(2.4, 1.2, "**embed**\ntokens, or the\nmask vector", width=1.25, height=0.8)
    s.frame(4.3, 1.35, 2.0, 1.9, "refine block, K times")
    block = s.box(4.3, 1.2, "transformer layers,\nboth directions", width=1.6, height=0.6)
    norm = s.box(4.3, 1.95, "RMSNorm", width=1.6, height=0.36)
    tokens = s.box(6.6, 0.75, "**token head**\nlogits [B, L, V]", "out", 1.5, 0.6)
    confidence = s.box(6.6, 1.95, "**confidence head**\nsigmoid [B, L]", "out", 1.5, 0.6)
    s.arrow(canvas.right, embed.left)
    s.arrow(embed.right, block.left)
    s.arrow(block.bottom, norm.top)
    s.arrow(norm.left, (3.4, 1.95), (3.4, 1.35), block.at(0, 0.75))
    s.arrow(norm.right, confidence.left)
    s.arrow((5.6, 1.95), (5.6, 0.75), tokens.left)
    s.note(3.16, 0.97, "$z_0$")
    s.note(5.6, 1.35, "$z_K$")
    s.note(4.3, 2.55, "$z_{k+1}$ = block($z_k$), each z [B, L, D]; the weights are the same each time")
    return s


def refine_loop() -> Sketch:
    "what the one loop owns, and the two places where a model and a policy come in."
    s = Sketch(7.4, 3.6)
    canvas = s.box(0.95, 1.0, "**canvas**\nOnce ▢ a ▢ …\nids [B, L]", "canvas", 1.6, 0.8)
    model = s.box(3.5, 1.0, "**model.denoise**\nids, state", "net", 1.75, 0.65)
    draw = s.box(6.4, 1.0, "**draw tokens**\nfloat64, temperature,\na seed for each row", "plain", 1.75, 0.8)
    policy = s.box(6.4, 2.55, "**policy**\nwhich to write,\nwhich to reopen", "net", 1.75, 0.8)
    apply = s.box(3.5, 2.55, "**apply**\ngiven tokens stay,\nbehind an end: ends", "plain", 1.75, 0.8)
    record = s.box(0.95, 2.55, "**Trajectory**\nevery canvas, every\nconfidence", "out", 1.6, 0.8)
    s.arrow(canvas.right, model.left)
    s.arrow(model.right, draw.left)
    s.note(4.94, 1.0, "logits,\nconfidence")
    s.arrow(draw.bottom, policy.top)
    s.note(6.4, 1.75, "SamplerState: canvas, masks,\nprobabilities, draws")
    s.arrow(policy.left, apply.right)
    s.note(4.94, 2.55, "UnmaskAction")
    s.arrow(apply.left, record.right)
    s.arrow(apply.top, (3.5, 1.77), (0.95, 1.77), canvas.bottom)
    s.note(2.2, 1.77, "the next canvas")
    s.arrow(model.at(0.2, 0), (2.975, 0.3), (4.025, 0.3), model.at(0.8, 0), dashed=True)
    s.note(3.5, 0.3, "state")
    s.note(3.7, 3.35, "ends when the canvas is full, or nothing changes where the policy reopens, or the calls are used up")
    return s


def gpt() -> Sketch:
    "the same blocks read in order, with and without a cache."
    s = Sketch(7.4, 3.5)
    s.note(1.5, 0.2, "all tokens at once: training, scoring", weight="bold")
    s.note(5.3, 0.2, "one token more: writing with a cache", weight="bold")
    ids = s.box(1.5, 3.2, "start    Once    upon    a", "canvas", 2.3, 0.4)
    blocks = s.box(1.5, 2.15, "**blocks**\npositions 0, 1, 2, 3\ncausal: none sees a later one", width=2.5, height=0.75)
    head = s.box(1.5, 1.28, "head: the embedding, tied", width=2.3, height=0.38)
    out = s.box(1.5, 0.72, "Once    upon    a    time", "out", 2.3, 0.38)
    for a, b in ((ids, blocks), (blocks, head), (head, out)): s.arrow(a.top, b.bottom)
    new = s.box(4.5, 3.2, "a", "canvas", 0.7, 0.4)
    again = s.box(4.5, 2.15, "**blocks**\nposition 3, the\nlength of the cache", width=1.7, height=0.75)
    head = s.box(4.5, 1.28, "head", width=1.0, height=0.38)
    one = s.box(4.5, 0.72, "time", "out", 0.7, 0.38)
    for a, b in ((new, again), (again, head), (head, one)): s.arrow(a.top, b.bottom)
    cache = s.box(6.35, 2.15, "**KV cache**\nkeys, values of\nstart, Once, upon", "plain", 1.4, 0.75)
    s.arrow(cache.at(0, 0.3), again.at(1, 0.3))
    s.arrow(again.at(1, 0.7), cache.at(0, 0.7))
    s.note(6.35, 2.72, "read, then appended to")
    s.arrow(one.right, (7.25, 0.72), (7.25, 3.2), new.right, dashed=True)
    s.note(6.0, 3.2, "the next token")
    s.arrow(out.right, one.left)
    s.arrow(one.left, out.right)
    s.note(3.4, 0.72, "equal logits")
    return s


def imadarem() -> Sketch:
    "one step of the denoiser, its gate, and its teacher."
    s = Sketch(7.4, 3.95)
    canvas = s.box(0.9, 0.85, "**canvas**\n▢ [C] ▢ ▢ …\nids [B, L]", "canvas", 1.5, 0.8)
    embed = s.box(2.85, 0.85, "**embed**\ntokens\n+ decayed positions\n+ time t", width=1.65, height=0.95)
    blocks = s.box(4.85, 0.85, "**blocks**\nfull attention", width=1.4, height=0.6)
    logits = s.box(6.5, 0.5, "**logits**\n[B, L, V]", "out", 1.3, 0.55)
    gate = s.box(6.5, 1.4, "**gate**\nrefine it again?\nsigmoid [B, L]", "out", 1.4, 0.75)
    soft = s.box(2.85, 2.15, "**self-conditioning**\nprojection", width=1.65, height=0.55)
    teacher = s.box(4.85, 2.95, "**teacher**\naverage of the weights", "plain", 1.9, 0.55)
    entropy = s.box(2.85, 2.95, "entropy above\na threshold?", "out", 1.5, 0.55)
    which = s.box(0.9, 2.15, "**which positions**\nto predict again", "plain", 1.5, 0.55)
    s.arrow(canvas.right, embed.left)
    s.arrow(embed.right, blocks.left)
    s.arrow(blocks.right, (5.7, 0.85), (5.7, 0.5), logits.left)
    s.arrow((5.7, 0.85), (5.7, 1.4), gate.left)
    s.arrow(logits.right, (7.3, 0.5), (7.3, 2.15), soft.right, dashed=True)
    s.note(5.2, 2.15, "probabilities of the step before")
    s.arrow(soft.top, embed.bottom)
    s.arrow(blocks.bottom, teacher.top, dashed=True)
    s.arrow(teacher.left, entropy.right)
    s.arrow(entropy.left, (0.9, 2.95), which.bottom)
    s.note(1.5, 2.95, "either")
    s.arrow(gate.bottom, (6.5, 3.6), (0.55, 3.6), which.at(0.2667, 1))
    s.note(1.5, 3.6, "or")
    s.arrow(which.top, canvas.bottom)
    return s


def chunk_trm() -> Sketch:
    "a reasoning z and a draft y, refined by one network."
    s = Sketch(7.4, 3.6)
    s.frame(4.3, 1.6, 4.0, 2.75, "one refinement, 3 times")
    context = s.box(1.0, 0.85, "**context x**\n64 characters", "canvas", 1.6, 0.6)
    y = s.box(3.2, 2.35, "**draft y**\nof the chunk", "plain", 1.4, 0.6)
    z = s.box(3.2, 1.45, "**reasoning z**", "plain", 1.4, 0.42)
    think = s.box(5.25, 0.85, "z ← net(x, y, z)", width=1.7, height=0.5)
    answer = s.box(5.25, 2.35, "y ← net(y, z)", width=1.7, height=0.5)
    out = s.box(6.65, 3.3, "logits [B, C, V]", "out", 1.4, 0.4)
    s.arrow(context.right, think.left)
    s.arrow(z.right, (4.2, 1.45), (4.2, 0.98), think.at(0, 0.76))
    s.arrow(y.at(1, 0.25), (4.05, 2.2), (4.05, 0.72), think.at(0, 0.24))
    s.arrow(think.at(0.8, 0), (5.76, 0.42), (4.74, 0.42), think.at(0.2, 0))
    s.note(5.25, 0.42, "6 times")
    s.arrow(think.bottom, answer.top)
    s.note(5.25, 1.6, "then once")
    s.arrow(y.at(1, 0.65), answer.at(0, 0.68))
    s.arrow(answer.at(0.2, 1), (4.74, 2.8), (3.2, 2.8), y.bottom)
    s.arrow(answer.at(0.8, 1), (5.76, 3.3), out.left)
    s.note(1.0, 1.9, "y and z begin as\nlearned vectors, never\nas the target")
    s.arrow((1.75, 1.9), (2.1, 1.9), (2.1, 1.45), z.left, dashed=True)
    s.arrow((2.1, 1.9), (2.1, 2.35), y.left, dashed=True)
    s.note(2.6, 3.3, "3 × (6 + 1) = 21 passes of one network")
    return s


def imports() -> dict[str, set[str]]:
    "The rooms of the library, and those that each imports, by name."
    rooms = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "shimmer").glob("*.py")) if path.stem[0] != "_"}
    named = lambda tree: {node.module.removeprefix("shimmer.") for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and (node.level or node.module.startswith("shimmer."))}
    return {room: named(tree) & rooms.keys() - {room} for room, tree in rooms.items()}


def floors() -> dict[str, int]:
    "The floor of each room, as the page for contributors has it; ValueError where it is silent, or where a room imports from its own floor or above."
    text = (NBS / "contributing.qmd").read_text(encoding="utf-8")
    found = {room: int(floor) for floor, rooms in re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE) for room in re.findall(r"`(\w+)`", rooms)}
    for room, others in imports().items():
        if room not in found: raise ValueError(f"shimmer/{room}.py is on no floor: add it to the table of modules in nbs/contributing.qmd")
        if wrong := [other for other in others if found.get(other, 0) >= found[room]]:
            raise ValueError(f"shimmer/{room}.py on floor {found[room]} imports {', '.join(sorted(wrong))}, and a room imports only from floors below: move it up in the table of nbs/contributing.qmd")
    return {room: found[room] for room in imports()}


SLOTS = 6  # places on a floor


def arrange(floor: dict[str, int], needs: dict[str, set[str]]) -> dict[str, int]:
    "A place for each room, so that arrows are short and pass behind few rooms; found by moving and swapping rooms as long as that helps."
    place = {}
    for level in sorted(set(floor.values())):
        here = [room for room in floor if floor[room] == level]
        if len(here) > SLOTS: raise ValueError(f"floor {level} has {len(here)} rooms, and {SLOTS} places are drawn: raise SLOTS")
        place |= {room: int(SLOTS * (n + 0.5) / len(here)) for n, room in enumerate(here)}
    places = {(floor[room], place[room]): room for room in floor}

    def cost() -> float:
        total = 0.0
        for room, others in needs.items():
            for other in others:
                across, down = place[other] - place[room], floor[room] - floor[other]
                total += abs(across) + 4 * sum((level, round(x)) in places and abs(x - round(x)) < 0.45 for level in range(floor[other] + 1, floor[room])
                                               for x in [place[room] + across * (floor[room] - level) / down])
        return total

    def put(room: str, slot: int) -> None:
        level, before, other = floor[room], place[room], places.pop((floor[room], slot), None)
        places.pop((level, before))
        if other: place[other], places[level, before] = before, other
        place[room], places[level, slot] = slot, room

    best, moved = cost(), True
    while moved:
        moved = False
        for room in floor:
            for slot in range(SLOTS):
                if slot == (before := place[room]): continue
                put(room, slot)
                if (now := cost()) < best - 1e-9: best, moved = now, True
                else: put(room, before)
    return place


def rooms() -> Sketch:
    "The preface: the rooms of the library on their floors; an arrow leads to each room that another one needs, unless a room between them needs it too."
    needs, floor = imports(), floors()
    reach = lambda room: needs[room] | {far for near in needs[room] for far in reach(near)}
    direct = {room: {n for n in others if not any(n in reach(between) for between in others - {n})} for room, others in needs.items()}
    place, top = arrange(floor, direct), max(floor.values())
    s = Sketch(7.4, 0.2 + 0.85 * top)
    boxes = {room: s.box(1.27 + 1.12 * place[room], 0.85 * (top - level) + 0.35, room, "net" if level < 4 else "plain", 1.02, 0.38) for room, level in floor.items()}
    for level in range(1, top + 1): s.note(0.33, 0.85 * (top - level) + 0.35, f"floor {level}")
    for room, others in direct.items():
        for other in sorted(others): s.arrow(boxes[room].bottom, boxes[other].top)
    return s


FIGURES = {"lira": lira, "refine_loop": refine_loop, "gpt": gpt, "imadarem": imadarem, "chunk_trm": chunk_trm, "rooms": rooms}


def draw(folder: Path) -> None:
    "Write every figure, the same bytes each time."
    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, figure in FIGURES.items():
            figure().figure.savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None, "Creator": None})


def tale(folder: Path) -> None:
    "Write refinement.html: the canvas that comes with the package, telling a tale."
    from shimmer.checkpoints import load_checkpoint
    from shimmer.player import save_player
    from shimmer.samplers import generate_topk
    model, tokenizer = load_checkpoint("tales")
    told = generate_topk(model, [tokenizer.encode("Once upon a time")], eos_token_id=tokenizer.eos_token_id)
    save_player(told, tokenizer, folder / "refinement.html", title="A tale, call by call", seconds_per_step=0.2, overwrite=True)


def writing(folder: Path) -> None:
    "Write writing.gif: one canvas tells a tale in twelve calls, and beside it one token a call, on one clock."
    from shimmer.checkpoints import load_checkpoint
    from shimmer.player import INK, save_gif
    from shimmer.samplers import generate_topk
    from shimmer.tales import Tales
    from shimmer.trajectories import PAPER
    model, tokenizer = load_checkpoint("tales")
    panels = []
    with tempfile.TemporaryDirectory() as place:
        for name, calls in (("twelve calls", 12), ("one token a call", None)):
            told = generate_topk(model, [tokenizer.encode("Once upon a time")], num_steps=calls, temperature=0.7, eos_token_id=tokenizer.eos_token_id)
            path = save_gif(told, tokenizer, Path(place) / f"{len(panels)}.gif", width=560)
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(path))]
            verdict = Tales().check(told.texts(tokenizer)[0])
            panels.append((name, frames, "a right tale" if verdict else f"not a tale: {verdict.reason}"))
    title, plain = (ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / f"DejaVuSans{bold}.ttf"), 18) for bold in ("-Bold", ""))
    wide, tall, top, foot = 560, max(frame.height for _, frames, _ in panels for frame in frames), 40, 40

    def picture(n: int) -> Image.Image:
        image = Image.new("RGB", (2 * wide + 20, top + tall + foot), PAPER)
        draw = ImageDraw.Draw(image)
        for k, (name, frames, verdict) in enumerate(panels):
            left = k * (wide + 20)
            image.paste(frames[min(n, len(frames) - 1)], (left, top))
            draw.text((left + 18, 12), name, INK, title)
            if n >= len(frames) - 1: draw.text((left + 18, top + tall + 6), verdict, INK, plain)
        return image.resize((image.width * 5 // 8, image.height * 5 // 8), Image.Resampling.LANCZOS)

    pictures = [picture(n) for n in range(max(len(frames) for _, frames, _ in panels))]
    palette = pictures[len(panels[0][1]) // 2].quantize(32)  # one for all, so that a frame holds only what changes
    pictures = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in pictures]
    times = [180] * (len(pictures) - 1) + [4000]
    pictures[0].save(folder / "writing.gif", save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=True)


def solving(folder: Path) -> None:
    "Write solving.gif: the canvas of puzzles, on one it has not seen, the surest cell a call."
    import torch
    from shimmer.checkpoints import load_checkpoint
    from shimmer.player import save_solving
    from shimmer.policies import TopK
    from shimmer.puzzles import part, sample_puzzles
    from shimmer.samplers import refine
    model, tokenizer = load_checkpoint("sudoku-6")
    puzzle, solution = part(next(sample_puzzles(tokenizer.sudoku, 1, seed=26, held_out=True)))
    run = refine(model, torch.tensor([tokenizer.template(puzzle)]), TopK(k=1), len(puzzle), temperature=0.0)
    save_solving(run, tokenizer, folder / "solving.gif", solution=solution, overwrite=True)


def main(check: bool = False) -> int:
    "Draw, or only compare; return 1 where a figure differs."
    if not check:
        draw(IMAGES)
        tale(IMAGES)
        writing(IMAGES)
        solving(IMAGES)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        differ = [name for name in FIGURES if not (IMAGES / f"{name}.svg").exists() or not filecmp.cmp(Path(folder) / f"{name}.svg", IMAGES / f"{name}.svg", shallow=False)]
    for name in differ: print(f"nbs/images/{name}.svg is not what .ci/draw_figures.py draws: run `make figures`", file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    sys.exit(main(parser.parse_args().check))
