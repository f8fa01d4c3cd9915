"""Put a trained canvas into the package: its files, what `shimmer evaluate` makes of it, and a model card that is written from those figures.

`make canvas` trains one first. Without a checkpoint only the card is written, from the figures as they are; --check compares it."""
import argparse
import json
import shutil
import sys
from dataclasses import fields
from datetime import date
from importlib.metadata import version
from pathlib import Path

from book import ROOT
from shimmer import cli, cli_train, cli_write

CANVAS = ROOT / "shimmer" / "canvases" / "tales"
FILES = ("config.json", "model.safetensors", "shimmer_tokenizer.json", cli_train.FLAGS)
EVALUATE = "--full --num_ordered 64 --num_written 256 --temperature 0.8"
WAYS = tuple(f"--policy top-k {flags}".strip() for flags in ("", "--temperature 1", "--order random", "--order random --temperature 1", "--order left_to_right", "--num_steps 36"))  # flags of `shimmer generate`
TALES = 256  # written in each of these ways

CARD = """---
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

FIGURES = {"nats_per_canvas": "nats a tale, at most", "bits_per_byte": "bits per byte, at most", "left_to_right_bits_per_byte": "bits per byte, from left to right",
           "duel_1_bits_per_byte": "bits per byte, surest first, one a call", "duel_2_bits_per_byte": "bits per byte, surest first, two a call", "duel_4_bits_per_byte": "bits per byte, surest first, four a call"}


def command(flags: dict) -> str:
    "The command line that a run's flags came from."
    left_out = ("checkpoint_dir", "checkpoint_name", "overwrite", "max_seq_len")  # where it lay, and what follows from the corpus
    kind = cli_train.MODELS[flags.get("model", "lira")]
    differing = [(f.name, flags[f.name]) for f in fields(kind) if f.name not in left_out and flags.get(f.name, json.loads(json.dumps(f.default))) != json.loads(json.dumps(f.default))]
    return " ".join([f"shimmer train {kind.kind}"] + [f"--{name}" + ("" if value is True else f" {value}") for name, value in differing])


def card() -> str:
    "The model card, of nothing but what is in the folder."
    read = lambda name: json.loads((CANVAS / name).read_text(encoding="utf-8"))
    found, config = read("evaluation.json"), read("config.json")
    measured, = found["checkpoints"]
    between = lambda values, name, form: f"{values[name]:{form}} ({' to '.join(format(end, form) for end in values[name + '_95_percent'])})"
    rows = [f"| {words} | {between(measured, name, '.2f' if name.startswith('nats') else '.4f')} |" for name, words in FIGURES.items()]
    rows.insert(1, f"| nats a tale above the entropy, at most | {measured['nats_per_canvas'] - measured['entropy_nats_per_tale']:.2f} |")
    rows += [f"| {words} | {measured[name]:.3f} |" for name, words in (("ece_at_masked", "expected calibration error of the confidence, at masked positions"), ("ece_at_filled", "the same at filled positions")) if measured.get(name) is not None]
    ways = [f"| {'`' + way['flags'] + '`' if way['flags'] else 'its defaults'} | {way['calls']:.1f} | {between(way, 'tales_right', '.1%')} |" for way in found["ways"]]
    return CARD.format(parameters=measured["parameters"], steps=found["made"]["updates"], command=command(read(cli_train.FLAGS)), K=config["num_refine_steps"], layers=config["num_layers"], width=config["hidden_size"],
                       length=config["max_seq_len"], vocabulary=config["vocab_size"], size=(CANVAS / "model.safetensors").stat().st_size / 1e6, canvases=measured["canvases"], ordered=measured["ordered_canvases"], entropy=measured["entropy_nats_per_tale"],
                       figures="\n".join(rows), written=found["ways"][0]["tales_written"], ways="\n".join(ways))


def ways() -> list[dict]:
    "How many of the tales are right that each of WAYS writes."
    from shimmer.metrics import judge_tales
    rows = []
    for flags in WAYS:
        words = ["--checkpoint", CANVAS.name, "--num_samples", str(TALES), *flags.split()]
        model, tokenizer, options = cli_write.parse(cli_write.Generate, words)
        trajectory = cli_write.write(model, tokenizer, options)
        rows.append({"flags": flags, "calls": trajectory.num_calls.float().mean().item(), **judge_tales(trajectory.texts(tokenizer))})
        print(f"{flags or 'defaults':40} {rows[-1]['tales_right']:.1%} right", flush=True)
    return rows


def put(checkpoint: Path) -> None:
    "Copy a checkpoint into the package and measure it there."
    CANVAS.mkdir(parents=True, exist_ok=True)
    for name in FILES: shutil.copyfile(checkpoint / name, CANVAS / name)
    figures = CANVAS / "evaluation.json"
    if code := cli.main(f"evaluate --checkpoint {CANVAS.name} {EVALUATE} --overwrite --output {figures}".split()): sys.exit(code)
    updates = json.loads((checkpoint / "training_state" / "progress.json").read_text())["step"]
    found = json.loads(figures.read_text()) | {"ways": ways(), "made": {"date": date.today().isoformat(), "torch": version("torch"), "updates": updates}}
    figures.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(checkpoint: Path | None = None, check: bool = False) -> int:
    "Make what is asked for; return 1 where the card is compared and differs."
    if checkpoint: put(checkpoint)
    target, text = CANVAS / "README.md", card()
    if not check: target.write_text(text, encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != text:
        print(f"{target.relative_to(ROOT)} is not what evaluation.json makes: run `.venv/bin/python .ci/make_canvas.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, help="a finished run of shimmer train")
    parser.add_argument("--check", action="store_true", help="compare the card, and write nothing")
    args = parser.parse_args()
    sys.exit(main(args.checkpoint, args.check))
