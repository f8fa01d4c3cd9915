"""Put a trained canvas into the package: its files, what `shimmer evaluate` makes of it, and a model card that is written from those figures.

`make canvas` trains them first, each under the name it gets. Without a checkpoint only the cards are written, from the figures as they are; --check compares them."""
import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import date
from importlib.metadata import version
from pathlib import Path

from book import ROOT
from shimmer import cli, cli_train, cli_write

CANVASES = ROOT / "shimmer" / "canvases"
FILES = ("config.json", "model.safetensors", "shimmer_tokenizer.json", cli_train.FLAGS)
TALES_WAYS = tuple(f"--policy top-k {flags}".strip() for flags in ("", "--temperature 1", "--order random", "--order random --temperature 1", "--order left_to_right", "--num_steps 36"))  # flags of `shimmer generate`
PUZZLES_WAYS = ("", "--policy top-k", "--policy top-k --num_steps 1", "--policy top-k --num_steps 1 --num_refine_steps 8", "--policy guided-remasking")
WRITTEN = 256  # tales or puzzles in each of these ways

TALES_CARD = """---
license: mit
language: en
library_name: shimmer
pipeline_tag: text-generation
tags: [masked-diffusion, iterative-refinement, text-generation]
---

<!-- Made from evaluation.json by .ci/make_canvas.py. -->

# tales: a trained canvas

A LIRA of {parameters:,} parameters that writes the little stories of the grammar `tales`. It comes with the package and needs no network:

```bash
shimmer generate --prompt "Once upon a time"
shimmer info --checkpoint tales
```

```python
from shimmer.checkpoints import load_checkpoint
model, tokenizer = load_checkpoint("tales")
```

## How it was made

{steps:,} updates on drawn tales, each seen once, by

```bash
{command}
```

and put here, measured and described by `make canvas`. It applies a block of {layers} layers, {width} wide, {K} times to canvases of {length} positions, knows {vocabulary} words and signs, and is {size:.1f} MB of float32 weights.

## How good it is

On {canvases:,} tales it has not seen, in an order on the first {ordered} of them. The entropy of the grammar, which no model can undercut on average, is {entropy:.2f} nats a tale. In brackets: 95% intervals over the tales.

| figure | value |
| --- | --- |
{figures}

Of {written} tales written from nothing, as judged by the grammar: right means that everything agrees from the first sentence to the last.

| `shimmer generate` with | calls a tale | right |
| --- | --- | --- |
{ways}

## What it is not

It knows {vocabulary} words and nothing but these tales; other words in a prompt are refused. Positions that are written in one call are drawn independently of each other, so few calls cost right tales, as the last line of the table shows.
"""

PUZZLES_CARD = """---
license: mit
library_name: shimmer
tags: [masked-diffusion, iterative-refinement, sudoku]
---

<!-- Made from evaluation.json by .ci/make_canvas.py. -->

# sudoku-6: a canvas that solves puzzles

A LIRA of {parameters:,} parameters that solves sudokus of six digits, with boxes of two rows and three columns. It comes with the package and needs no network:

```bash
shimmer generate --checkpoint sudoku-6 --infill ".15.2......12..1..65.....3...5...2.."
```

```python
from shimmer.checkpoints import load_checkpoint
model, tokenizer = load_checkpoint("sudoku-6")
```

## How it was made

{steps:,} updates on minimal puzzles with one solution each, by

```bash
{command}
```

and put here, measured and described by `make canvas`. It applies a block of {layers} layers, {width} wide, {K} times to canvases of {length} positions, and is {size:.1f} MB of float32 weights. Clues are tokens of their own, which it reads and never writes.

## How good it is

On {canvases:,} puzzles from classes of grids that training had none of. In brackets: 95% intervals over the puzzles.

| figure | value |
| --- | --- |
{figures}

Of {written} such puzzles, each cell its likeliest digit:

| `shimmer generate` with | calls a puzzle | solved |
| --- | --- | --- |
{ways}

## What it is not

It learned from puzzles whose clues are as few as can be, and from grids of one size. It does not prove anything: a grid that it fills may break a rule, and then the command says which cell.
"""

TALES_FIGURES = {"nats_per_canvas": "nats a tale, at most", "bits_per_byte": "bits per byte, at most", "left_to_right_bits_per_byte": "bits per byte, from left to right",
                 "duel_1_bits_per_byte": "bits per byte, surest first, one a call", "duel_2_bits_per_byte": "bits per byte, surest first, two a call", "duel_4_bits_per_byte": "bits per byte, surest first, four a call"}
PUZZLES_FIGURES = {"nats_per_canvas": "nats a puzzle, given its clues, at most"}


def command(flags: dict) -> str:
    "The command line that a run's flags came from."
    left_out = ("checkpoint_dir", "checkpoint_name", "overwrite", "max_seq_len")  # where it lay, and what follows from the corpus
    kind = cli_train.MODELS[flags.get("model", "lira")]
    differing = [(f.name, flags[f.name]) for f in fields(kind) if f.name not in left_out and flags.get(f.name, json.loads(json.dumps(f.default))) != json.loads(json.dumps(f.default))]
    return " ".join([f"shimmer train {kind.kind}"] + [f"--{name}" + ("" if value is True else f" {value}") for name, value in differing])


def tell(parsed: tuple) -> dict:
    "How many of the tales are right that are written in one way."
    from shimmer.metrics import judge_tales
    trajectory = cli_write.write(*parsed)
    return {"calls": trajectory.num_calls.float().mean().item(), **judge_tales(trajectory.texts(parsed[1]))}


def solve(parsed: tuple) -> dict:
    "How many puzzles of the validation split are solved in one way, the likeliest digits taken."
    import torch
    from shimmer.corpora import load_corpus
    from shimmer.puzzles import judge_puzzles, part
    from shimmer.samplers import refine
    model, tokenizer, options = parsed
    texts = load_corpus(tokenizer_corpus(tokenizer), limit=1).valid["text"][:WRITTEN]
    canvas = torch.tensor([tokenizer.template(part(text)[0]) for text in texts])
    calls = cli_write.calls_of(model, options.sampler, int((canvas == tokenizer.mask_token_id).sum(1).max()))
    run = refine(model, canvas, options.sampler.rule, calls, temperature=0.0, record=False)
    return {"calls": run.num_calls.float().mean().item(), **judge_puzzles(tokenizer.sudoku, run.texts(tokenizer))}


def tokenizer_corpus(tokenizer) -> str:
    "The corpus that a tokenizer of grids is for."
    return f"sudoku-{tokenizer.sudoku.size}"


@dataclass(frozen=True)
class Shipped:
    "What is measured of a canvas and said on its card."
    evaluate: str  # flags of `shimmer evaluate`
    ways: tuple[str, ...]  # flags of `shimmer generate`
    common: str  # those that all of these ways have
    measure: Callable[[tuple], dict]  # model, tokenizer and options of a way -> a row
    share: str  # the figure of a row that the card shows
    figures: dict[str, str]  # rows of the card
    card: str


SHIPPED = {
    "tales": Shipped("--full --num_ordered 64 --num_written 256 --temperature 0.8", TALES_WAYS, f"--num_samples {WRITTEN}", tell, "tales_right", TALES_FIGURES, TALES_CARD),
    "sudoku-6": Shipped("--corpus sudoku-6 --full --num_ordered 64 --num_written 1000", PUZZLES_WAYS, "--infill .15.2......12..1..65.....3...5...2..", solve, "puzzles_solved", PUZZLES_FIGURES, PUZZLES_CARD),
}


def card(name: str) -> str:
    "The model card of a canvas, of nothing but what is in its folder."
    folder, about = CANVASES / name, SHIPPED[name]
    read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))
    found, config = read("evaluation.json"), read("config.json")
    measured, = found["checkpoints"]
    between = lambda values, name, form: f"{values[name]:{form}} ({' to '.join(format(end, form) for end in values[name + '_95_percent'])})"
    rows = [f"| {words} | {between(measured, name, '.2f' if name.startswith('nats') else '.4f')} |" for name, words in about.figures.items()]
    if "entropy_nats_per_tale" in measured: rows.insert(1, f"| nats a tale above the entropy, at most | {measured['nats_per_canvas'] - measured['entropy_nats_per_tale']:.2f} |")
    if "puzzles_solved" in measured: rows.append(f"| puzzles solved by its default policy, of {measured['puzzles']:,} | {between(measured, 'puzzles_solved', '.1%')} |")
    rows += [f"| {words} | {measured[name]:.3f} |" for name, words in (("ece_at_masked", "expected calibration error of the confidence, at masked positions"), ("ece_at_filled", "the same at filled positions")) if measured.get(name) is not None]
    ways = [f"| {'`' + way['flags'] + '`' if way['flags'] else 'its defaults'} | {way['calls']:.1f} | {between(way, about.share, '.1%')} |" for way in found["ways"]]
    return about.card.format(parameters=measured["parameters"], steps=found["made"]["updates"], command=command(read(cli_train.FLAGS)), K=config["num_refine_steps"], layers=config["num_layers"], width=config["hidden_size"],
                             length=config["max_seq_len"], vocabulary=config["vocab_size"], size=(folder / "model.safetensors").stat().st_size / 1e6, canvases=measured["canvases"], ordered=measured["ordered_canvases"], entropy=measured.get("entropy_nats_per_tale", 0.0),
                             figures="\n".join(rows), written=WRITTEN, ways="\n".join(ways))


def ways(name: str) -> list[dict]:
    "What is right of what a canvas writes in each of its ways."
    rows, about = [], SHIPPED[name]
    for flags in about.ways:
        rows.append({"flags": flags, **about.measure(cli_write.parse(cli_write.Generate, f"--checkpoint {name} {about.common} {flags}".split()))})
        print(f"{flags or 'defaults':60} {rows[-1][about.share]:.1%}", flush=True)
    return rows


def put(checkpoint: Path) -> None:
    "Copy a checkpoint into the package, under its own name, and measure it there."
    folder = CANVASES / checkpoint.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES: shutil.copyfile(checkpoint / name, folder / name)
    figures = folder / "evaluation.json"
    if code := cli.main(f"evaluate --checkpoint {folder.name} {SHIPPED[folder.name].evaluate} --overwrite --output {figures}".split()): sys.exit(code)
    updates = json.loads((checkpoint / "training_state" / "progress.json").read_text())["step"]
    found = json.loads(figures.read_text()) | {"ways": ways(folder.name), "made": {"date": date.today().isoformat(), "torch": version("torch"), "updates": updates}}
    figures.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(checkpoint: Path | None = None, check: bool = False) -> int:
    "Make what is asked for; return 1 where a card is compared and differs."
    if checkpoint: put(checkpoint)
    wrong = 0
    for name in SHIPPED:
        target, text = CANVASES / name / "README.md", card(name)
        if not check: target.write_text(text, encoding="utf-8")
        elif not target.exists() or target.read_text(encoding="utf-8") != text:
            print(f"{target.relative_to(ROOT)} is not what evaluation.json makes: run `.venv/bin/python .ci/make_canvas.py`", file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, help="a finished run of shimmer train, in a folder named as the canvas")
    parser.add_argument("--check", action="store_true", help="compare the cards, and write nothing")
    args = parser.parse_args()
    sys.exit(main(args.checkpoint, args.check))
