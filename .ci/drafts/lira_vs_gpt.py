# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # LIRA against GPT
#
# > The source text's main claim, measured again: a GPT, canvases and blocks of equal parameters at equal operations, each at a learning rate inside its grid, three seeds, and one axis on which all can be read.

# %% [markdown]
# <!-- made: verdict_lira_vs_gpt -->
#
# <!-- figure: fig-lira-vs-gpt -->

# %% [markdown]
# The source text trained a LIRA and a GPT of 12M parameters each and reported that the GPT collapsed into repetition while LIRA wrote stories. The GPT's cache was broken ([A fair rival: GPT](../20_gpt.ipynb)), and the two perplexities beside each other were different quantities ([Likelihood](../11_likelihood.ipynb)).
#
# Here all are trained by one trainer on the same canvases and scored in bits per byte. The GPT is scored exactly, and so are blocks of one token. A canvas has a bound, and exact figures along orders of its own: from left to right, and surest first (DUEL), one, two or four tokens a step. Between a GPT and a canvas stand blocks ([Blocks](../28_blocks.ipynb)), trained for one length or for a mixture of lengths and then read at each.

# %% tags=["parameters"]
out_dir = "reports/lira_vs_gpt"
corpora = [
    dict(name="tinystories", tokenizer="unigram", vocab_size=2000, length=128, layers=2, updates=500, rows="all"),
    dict(name="tinyshakespeare", tokenizer="char", vocab_size=None, length=128, layers=2, updates=300, rows="few"),
    dict(name="tales", tokenizer="word", vocab_size=None, length=72, layers=2, updates=500, rows="few"),
]
few = ["GPT", "canvas", "canvas, published recipe", "mixture"]
stories_limit = 40_000
seeds = [0, 1, 2]
hidden_size = 128
num_heads = 4
batch_size = 32
lr = 3e-3
muon_lrs = [0.01, 0.02, 0.04]  # and further ones until the best is inside
most_rates = 6
grid_part = 0.25  # of the updates, for each learning rate
tuned_texts = 96
scored_texts = 48  # by every measure
bound_texts = 256  # by the bound, or exactly where one call is enough
draws = 16
curve_points = 10
written_texts = 32
temperatures = [0.7, 1.0]
compile_blocks = True
device = None  # to compute on: cpu, cuda or mps; the best there is where None
precision = "auto"  # of the network's arithmetic: bf16 where the device multiplies it natively

# %%
import json
import math
import time
from pathlib import Path
from typing import NamedTuple
import matplotlib.pyplot as plt
import pandas as pd
import torch
from shimmer.appending import append_tokens
from shimmer.blocks import generate_blocks, speculate_blocks
from shimmer.canvases import encode_corpus
from shimmer.corpora import load_corpus
from shimmer.devices import autocast, pick_device, resolve_precision
from shimmer.gpt import GPTConfig, GPTModel
from shimmer.likelihood import bootstrap_interval, duel_nll, left_to_right_nll, nelbo
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.metrics import generation_metrics, judge_tales, split_words
from shimmer.objectives import MaskedLM, NextToken
from shimmer.policies import EntropyBound, TopK
from shimmer.samplers import make_canvas, refine
from shimmer.schedules import PROGRESSIVE, Stage, TrainConfig
from shimmer.tales import Tales
from shimmer.tokenizers import train_tokenizer
from shimmer.training import fit, flops_per_update

# %% [markdown]
# ## Texts
#
# Validation canvases are split: the first are for the results, the last for choosing learning rates, so that nothing is chosen on what is reported.

# %%
device, began = pick_device(device), time.perf_counter()
plt.style.use("shimmer.book")
SPECS = {spec["name"]: spec for spec in corpora}

class World(NamedTuple):
    encoded: object  # train and tokenizer
    test: torch.Tensor  # [bound_texts, L]
    other: torch.Tensor  # [tuned_texts, L]
    sizes: torch.Tensor  # [bound_texts] bytes

def world_of(spec):
    limit = {"tales": 4 * spec["updates"] * batch_size, "tinystories": stories_limit}.get(spec["name"])
    corpus = load_corpus(spec["name"], limit=limit)
    encoded = encode_corpus(corpus, train_tokenizer(corpus, spec["tokenizer"], spec["vocab_size"]), spec["length"])
    ids, n = encoded.valid["ids"], min(bound_texts, len(encoded.valid) // 2)
    return World(encoded, ids[:n], ids[n:][-tuned_texts:], torch.tensor([len(encoded.tokenizer.decode(row.tolist()).encode()) for row in ids[:n]]))

worlds = {name: world_of(spec) for name, spec in SPECS.items()}
pd.DataFrame([{"text": name, "tokens known": world.encoded.tokenizer.vocab_size, "canvas": world.test.shape[1], "training canvases": len(world.encoded.train), "scored by a bound": len(world.test), "bytes a canvas": world.sizes.double().mean().item()} for name, world in worlds.items()]).set_index("text").round(1)


# %% [markdown]
# ## Models of one size
#
# The same blocks, the same width, query-key normalisation for all. The GPT gets as many layers as bring its parameters nearest to the canvas's. A canvas applies its block K times; with K = 1 it costs half as much, and gets twice the updates.
#
# The house recipe is one stage of `MaskedLM` over all mask ratios. The published one is the progressive curriculum of the source text, in four stages. The mixture draws a block length for each batch.

# %%
class Plan(NamedTuple):
    K: int = 2
    config: dict = {}
    published: bool = False

ALL = MaskedLM((1e-6, 1.0))
MIXED = (1, 4, 16)  # and the whole canvas
in_blocks = lambda *lengths, K=2: Plan(K, dict(begin_token=True, position_embedding=False, block_lengths=lengths))
PLANS = {"canvas": Plan(), "canvas, K = 1": Plan(1), "canvas, published recipe": Plan(published=True), "blocks of 1": in_blocks(1), "blocks of 4": in_blocks(4), "blocks of 16": in_blocks(16), "mixture": in_blocks(*MIXED, None), "mixture, K = 1": in_blocks(*MIXED, None, K=1)}
MODELS = ["GPT", *PLANS]
def models_of(place): return MODELS if SPECS[place]["rows"] == "all" else few

def canvas_of(place, who):
    tok, L, plan = worlds[place].encoded.tokenizer, SPECS[place]["length"], PLANS[who]
    options = dict(position_embedding=True) | plan.config
    if lengths := options.get("block_lengths"): options["block_lengths"] = tuple(L if b is None else b for b in lengths)
    return LatentCanvasModel(LatentCanvasConfig(tok.vocab_size, hidden_size, SPECS[place]["layers"], num_heads, plan.K, L, tok.mask_token_id, tok.pad_token_id, qk_norm=True, **options))

def gpt_of(place):
    tok, wanted = worlds[place].encoded.tokenizer, size(canvas_of(place, "canvas"))
    make = lambda layers: GPTModel(GPTConfig(tok.vocab_size, hidden_size, layers, num_heads, SPECS[place]["length"], qk_norm=True, bos_token_id=tok.eos_token_id or 0, pad_token_id=tok.pad_token_id))
    layers = min(range(1, 9), key=lambda n: abs(size(make(n)) - wanted))
    return lambda: make(layers)

def size(model): return sum(p.numel() for p in model.parameters())
gpts = {place: gpt_of(place) for place in worlds}

def model_of(place, who, seed=0):
    torch.manual_seed(seed)
    return gpts[place]() if who == "GPT" else canvas_of(place, who)


# %% [markdown]
# Operations are counted, forwards and backwards, not estimated. All get those of the canvas with K = 2.

# %%
def objectives_of(who):
    if who == "GPT": return [NextToken()]
    return [stage.objective for stage in PROGRESSIVE] if PLANS[who].published else [ALL]

gigaflop = {place: {who: sum(flops_per_update(model_of(place, who), objective, batch_size, SPECS[place]["length"]) for objective in objectives_of(who)) / len(objectives_of(who)) / 1e9 for who in models_of(place)} for place in worlds}
def num_updates(place, who, share=1.0): return max(4, round(share * SPECS[place]["updates"] * gigaflop[place]["canvas"] / gigaflop[place][who]))
pd.DataFrame([{"text": place, "model": who, "parameters": size(model_of(place, who)), "gigaflop an update": gigaflop[place][who], "updates": num_updates(place, who)} for place in worlds for who in models_of(place)]).set_index(["text", "model"]).round(2)


# %% [markdown]
# ## Training
#
# Muon moves the matrices inside blocks of all models, AdamW the rest. Nobody sees a canvas often enough to learn it by heart, so the last weights count.

# %%
torch._dynamo.config.recompile_limit = 1024  # models of one shape share what is compiled

def stages_of(place, who, updates):
    data = len(worlds[place].encoded.train)
    if who != "GPT" and PLANS[who].published: parts = [(stage.name, stage.objective) for stage in PROGRESSIVE]
    else: parts = [(who, objectives_of(who)[0])]
    share = updates * batch_size / data / len(parts)  # passes over the data, for each stage
    epochs = max(1, math.ceil(share * len(parts)))
    return tuple(Stage(name, objective, epochs, min(1 / len(parts), share / epochs)) for name, objective in parts)

def train(place, who, seed, muon_lr, share=1.0):
    updates = num_updates(place, who, share)
    config = TrainConfig(batch_size=batch_size, device=device, lr=lr, optimizer="muon", muon_lr=muon_lr, warmup_steps=min(50, updates // 5), precision=precision, compile=compile_blocks, seed=seed, progress=False, log_every=10,
                         validate_every=max(1, updates // curve_points) if share == 1 else 10**9, validation_texts=64, validation_draws=2, checkpoint_every=10**9, checkpoint_dir=f"{out_dir}/{place} {who} {seed} {muon_lr:g} {share:g}")
    return fit(model_of(place, who, seed), worlds[place].encoded.train, stages_of(place, who, updates), config, valid=worlds[place].other, resume=True)


# %% [markdown]
# Each model of each text has its own learning rate, the best of a grid after a quarter of the updates, with a seed that is not used again. The grid grows until the best has a neighbour on both sides. A mixture is chosen by the bound of the whole canvas, which is what it finds hardest.

# %%
def bound(model, ids, draws=draws, batch=64):  # [N] nats; a GPT's are exact
    with autocast(device, precision): return left_to_right_nll(model, ids, batch) if isinstance(model, GPTModel) else nelbo(model, ids, draws=draws, batch_size=batch)

tuning, best_lr = [], {}
def tune(place, who):
    tried = {}
    def attempt(muon_lr):
        tried[muon_lr] = bound(train(place, who, 100, muon_lr, grid_part).model, worlds[place].other, 4).mean().item()
        tuning.append({"corpus": place, "model": who, "Muon's rate": muon_lr, "nats a token": tried[muon_lr] / SPECS[place]["length"]})
    for muon_lr in muon_lrs: attempt(muon_lr)
    while (best := min(tried, key=tried.get)) in (min(tried), max(tried)) and len(tried) < most_rates: attempt(best * 2 if best == max(tried) else best / 2)
    return best

for place in worlds:
    for who in models_of(place):
        best_lr[place, who] = tune(place, who)
        print(f"{time.perf_counter() - began:5.0f} s  {place}, {who}: {best_lr[place, who]:g}", flush=True)
pd.DataFrame(tuning).pivot(index=["corpus", "model"], columns="Muon's rate", values="nats a token").round(3)

# %% [markdown]
# ## Scores
#
# The same canvases for all, by every measure; the bound, and what is exact in one call, on more of them besides. A mixture is read at each of its lengths.

# %%
ORDERS = {"left to right": left_to_right_nll, **{f"surest first, {k} a step": lambda model, ids, k=k: duel_nll(model, ids, rule="max_prob", k=k) for k in (1, 2, 4)}}

def readings(place, who, model):  # name -> (model, measures on the fewer canvases)
    if who == "GPT": return {who: (model, {})}
    if not model.config.block_lengths: return {who: (model, ORDERS)}
    found = {}
    for b in model.config.block_lengths:
        whole, name = b == SPECS[place]["length"], who if len(model.config.block_lengths) == 1 else f"{who}, read in blocks of {b}"
        found[name] = (model.at_block_length(b), {} if b == 1 else ORDERS if whole else {"surest first, 1 a step": ORDERS["surest first, 1 a step"]})
    return found

def measures_of(name): return ("exact" if name == "GPT" or name.endswith("blocks of 1") else "bound")

nats, runs, speeds, trained = {}, [], [], {}
def score(place, name, model, orders):
    ids, few_ids = worlds[place].test, worlds[place].test[:scored_texts]
    found = {measures_of(name): bound(model, ids)}
    with autocast(device, precision): found |= {measure: ask(model, few_ids) for measure, ask in orders.items()}
    for measure, values in found.items(): nats.setdefault((place, name, measure), []).append(values)


# %%
for place in worlds:
    for who in models_of(place):
        for seed in seeds:
            result = train(place, who, seed, best_lr[place, who])
            curve = [(row["step"] * gigaflop[place][who] / 1e3, row["valid_nats_per_token"]) for row in result.log if "valid_nats_per_token" in row]
            runs.append({"corpus": place, "model": who, "seed": seed, "updates": result.steps, "teraflop": result.steps * gigaflop[place][who] / 1e3, "parameters": size(result.model), "seconds": result.seconds, "curve": curve})
            for name, (model, orders) in readings(place, who, result.model).items(): score(place, name, model, orders)
            if seed == seeds[0]: trained[place, who] = result.model
        last = {key[1:]: values for key, values in nats.items() if key[0] == place and key[1].startswith(who)}
        print(f"{time.perf_counter() - began:5.0f} s  {place}, {who}: " + ", ".join(f"{name} {measure} {torch.stack(values).mean().item() / SPECS[place]['length']:.3f}" for (name, measure), values in last.items()), flush=True)


# %% [markdown]
# Bits per byte, with intervals over seeds and canvases together, and the ratio to the GPT on the same canvases. Lower is better. What is called a bound may lie above what the model is worth; the others are exact.

# %%
def bits(interval): return [value / math.log(2) for value in interval]

def row_of(place, name, measure):
    values = torch.stack(nats[place, name, measure])
    n = values.shape[1]
    sizes, rival = worlds[place].sizes[:n], torch.stack(nats[place, "GPT", "exact"])[:, :n]
    value, low, high = bits(bootstrap_interval(values, sizes))
    gap, gap_low, gap_high = bits(bootstrap_interval(values - rival, sizes))
    return {"corpus": place, "model": name, "measure": measure, "canvases": n, "bits per byte": value, "low": low, "high": high, "above the GPT": gap, "gap low": gap_low, "gap high": gap_high, "ratio to the GPT": (values.sum() / rival.sum()).item(), "by seed": [(row.sum() / sizes.sum() / math.log(2)).item() for row in values], "nats per canvas": values.mean().item()}

results = [row_of(*key) for key in nats]
pd.DataFrame(results).drop(columns=["by seed", "nats per canvas"]).set_index(["corpus", "model", "measure"]).round(3)

# %%
#| label: fig-lira-vs-gpt
#| fig-cap: "Bits per byte at equal parameters and operations, lower is better: exact figures are filled, bounds are open. 95% intervals over seeds and canvases; the vertical line is the GPT."
#| fig-alt: "Three panels, one for each text, with a row for each model: dots with intervals right of a vertical line."
fig, axes = plt.subplots(1, len(worlds), figsize=(11, 4.6), layout="constrained", squeeze=False)
for ax, place in zip(axes[0], worlds):
    rows = [row for row in results if row["corpus"] == place and row["measure"] in ("exact", "bound")][::-1]
    for y, row in enumerate(rows):
        ax.errorbar(row["bits per byte"], y, xerr=[[row["bits per byte"] - row["low"]], [row["high"] - row["bits per byte"]]], fmt="o", color="black", markerfacecolor="black" if row["measure"] == "exact" else "white", markersize=5, linewidth=1)
    ax.axvline(rows[-1]["bits per byte"], color="0.6", linewidth=1)
    ax.set(title=place, xlabel="bits per byte", yticks=range(len(rows)), yticklabels=[row["model"] for row in rows])
    ax.tick_params(axis="y", labelsize=7)
plt.show()


# %% [markdown]
# ## Where the ratio goes
#
# Learning curves on two logarithmic axes, with a line fitted to the second half of each. Where the canvas's slope is steeper, the ratio falls with training; where they are parallel, it stays. @fig-lira-vs-gpt-curves draws them.

# %%
def slope_of(curves):  # of log(nats) over log(teraflop), in the second half
    points = torch.tensor([point for curve in curves for point in curve[len(curve) // 2 :]], dtype=torch.float64).log()
    x, y = points[:, 0] - points[:, 0].mean(), points[:, 1] - points[:, 1].mean()
    return ((x * y).sum() / (x * x).sum()).item() if (x * x).sum() > 0 else 0.0

slopes = []
for place in worlds:
    for who in models_of(place):
        curves = [row["curve"] for row in runs if (row["corpus"], row["model"]) == (place, who)]
        each = [slope_of([curve]) for curve in curves]
        slopes.append({"corpus": place, "model": who, "slope": slope_of(curves), "lowest seed": min(each), "highest seed": max(each)})
pd.DataFrame(slopes).pivot(index="model", columns="corpus", values="slope").loc[[who for who in MODELS if any(row["model"] == who for row in slopes)], list(worlds)].round(3)

# %%
#| label: fig-lira-vs-gpt-curves
#| fig-cap: "Validation nats per token over the operations spent, both axes logarithmic; one line for each seed. The GPT's and blocks of one are exact, the others bounds; a mixture is validated as a whole canvas. The learning rate falls to its end within each run, which bends the lines down."
#| fig-alt: "Three panels of falling lines, one colour for each model."
COLOURS = dict(zip(MODELS, ("black", "tab:blue", "tab:cyan", "0.6", "tab:purple", "tab:red", "tab:orange", "tab:green", "tab:olive")))
fig, axes = plt.subplots(1, len(worlds), figsize=(11, 3.6), layout="constrained", squeeze=False)
for ax, place in zip(axes[0], worlds):
    for row in runs:
        if row["corpus"] == place: ax.plot(*zip(*row["curve"]), color=COLOURS[row["model"]], linewidth=1, label=row["model"] if row["seed"] == seeds[0] else None)
    ax.set(title=place, xlabel="teraflop", ylabel="nats per token", xscale="log", yscale="log")
axes[0, 0].legend(fontsize=7)
plt.show()

# %% [markdown]
# On tales the floor is known: the entropy. Nats a tale above it:

# %%
gaps = {}
if "tales" in worlds:
    entropy, tok = Tales().entropy(), worlds["tales"].encoded.tokenizer
    surprise = -torch.tensor([Tales().log_prob(tok.decode(row.tolist())) for row in worlds["tales"].test], dtype=torch.float64)
    for place, name, measure in nats:
        if place != "tales": continue
        values = torch.stack(nats[place, name, measure])
        gaps[f"{name}: {measure}"] = bootstrap_interval(values - surprise[: values.shape[1]])._asdict()
    print(f"entropy {entropy:.2f} nats a tale")
    for label, row in gaps.items(): print(f"{label:60} {row['value']:7.2f} nats above the truth ({row['low']:.2f} to {row['high']:.2f})")


# %% [markdown]
# ## What they write, and how fast
#
# Each model writes at several temperatures. Repetition is read against the entropy of what was written, the words of all texts together, in nats. Tokens a second are those of the whole set of texts, and of one text alone at temperature 1.

# %%
def ways_of(place):
    L, tok = SPECS[place]["length"], worlds[place].encoded.tokenizer
    gpt, canvas, mixture = (trained[place, who] for who in ("GPT", "canvas", "mixture"))
    written = lambda run: (run.ids, run.num_calls.double().mean().item())
    fill = lambda policy: lambda n, T: written(refine(canvas, make_canvas(canvas, [[]] * n), policy, L, T, 1, eos_token_id=tok.eos_token_id, record=False))
    blocks = lambda b, policy: lambda n, T: written(generate_blocks(mixture, [[]] * n, policy, b, L, None, T, 1, tok.eos_token_id, record=False))
    return {"GPT": lambda n, T: (append_tokens(gpt, [[]] * n, L, T, seed=1, eos_token_id=tok.eos_token_id)[0], float(L)),
            "canvas, random order": fill(TopK(k=1, order="random")), "canvas, surest first": fill(TopK(k=1)), "canvas, four a call": fill(TopK(k=4)), "canvas, entropy bound 0.1": fill(EntropyBound(0.1)),
            "blocks of 1": blocks(1, TopK(k=1)), "blocks of 4, surest first": blocks(4, TopK(k=1)), "blocks of 16, entropy bound 0.1": blocks(16, EntropyBound(0.1)),
            "blocks of 1, speculation": lambda n, T: written(speculate_blocks(mixture, [[]] * n, 4, L, T, 1, tok.eos_token_id))}

def timed(write, n, T):
    start = time.perf_counter()
    ids, calls = write(n, T)
    return ids, calls, time.perf_counter() - start


# %%
written, samples = [], {}
for place in worlds:
    tok, L = worlds[place].encoded.tokenizer, SPECS[place]["length"]
    for way, write in ways_of(place).items():
        alone = [timed(write, 1, 1.0)[2] for _ in range(2)][-1]
        for T in temperatures:
            ids, calls, taken = timed(write, written_texts, T)
            texts = samples[place, way, T] = [tok.decode(row.tolist()) for row in ids]
            right = {"right": judge_tales(texts)["tales_right"]} if place == "tales" else {}
            written.append({"corpus": place, "way": way, "temperature": T, **generation_metrics([split_words(text) for text in texts]), "calls": calls, "tokens_per_second": written_texts * L / taken, "tokens_per_second_alone": L / alone, **right})
    real = [split_words(tok.decode(row.tolist())) for row in worlds[place].test[:written_texts]]
    written.append({"corpus": place, "way": "the corpus", "temperature": math.nan, **generation_metrics(real)})
    print(f"{time.perf_counter() - began:5.0f} s  {place}: written", flush=True)
pd.DataFrame(written).set_index(["corpus", "way", "temperature"]).round(3)

# %% [markdown]
# The frontier: what a way of writing is worth, by the likelihood of the distribution it draws from, against its speed. Only ways that have one are here. Speculation has that of blocks of one, exactly; a mixture in blocks of four, surest first, that order's; the canvas that of its order and of as many tokens a step as it writes in a call.

# %%
#| label: fig-lira-vs-gpt-frontier
#| fig-cap: "Bits per byte against tokens a second, a text alone (open) and 32 at once (filled). Down and to the right is better."
#| fig-alt: "Three panels, one for each text, with two dots for each way to write, joined by a line."
WORTH = {"GPT": ("GPT", "exact"), "canvas, random order": ("canvas", "bound"), "canvas, surest first": ("canvas", "surest first, 1 a step"), "canvas, four a call": ("canvas", "surest first, 4 a step"),
         "blocks of 1": ("mixture, read in blocks of 1", "exact"), "blocks of 1, speculation": ("mixture, read in blocks of 1", "exact"), "blocks of 4, surest first": ("mixture, read in blocks of 4", "surest first, 1 a step")}
frontier = []
for place in worlds:
    for way, (model, measure) in WORTH.items():
        worth = next(row for row in results if (row["corpus"], row["model"], row["measure"]) == (place, model, measure))
        speed = next(row for row in written if (row["corpus"], row["way"], row["temperature"]) == (place, way, 1.0))
        frontier.append({"corpus": place, "way": way, "bits per byte": worth["bits per byte"], "low": worth["low"], "high": worth["high"], "alone": speed["tokens_per_second_alone"], "at once": speed["tokens_per_second"], "calls": speed["calls"]})
fig, axes = plt.subplots(1, len(worlds), figsize=(11, 3.6), layout="constrained", squeeze=False)
for ax, place in zip(axes[0], worlds):
    for (way, _), colour in zip(WORTH.items(), ("black", "0.6", "tab:blue", "tab:cyan", "tab:purple", "tab:green", "tab:red")):
        row = next(row for row in frontier if (row["corpus"], row["way"]) == (place, way))
        ax.plot([row["alone"], row["at once"]], [row["bits per byte"]] * 2, color=colour, linewidth=1, label=way)
        ax.scatter([row["alone"], row["at once"]], [row["bits per byte"]] * 2, edgecolor=colour, facecolor=["white", colour], s=22, zorder=3)
    ax.set(title=place, xlabel="tokens a second", ylabel="bits per byte", xscale="log")
axes[0, 0].legend(fontsize=7)
plt.show()

# %%
#| label: fig-lira-vs-gpt-repetition
#| fig-cap: "Repetition against entropy of what was written, one point for each temperature; the star is the corpus. At equal entropy a lower point repeats itself less. A way to write is good where its line comes near the star."
#| fig-alt: "Three panels, one for each text: repeated bigrams against entropy, lines of points and a star."
fig, axes = plt.subplots(1, len(worlds), figsize=(11, 3.4), layout="constrained", squeeze=False)
SHOWN = {"GPT": ("s", "black"), "canvas, random order": ("o", "0.6"), "canvas, surest first": ("^", "tab:blue"), "canvas, four a call": ("v", "tab:cyan"), "blocks of 1, speculation": ("D", "tab:green"), "the corpus": ("*", "black")}
for ax, place in zip(axes[0], worlds):
    for way, (marker, colour) in SHOWN.items():
        rows = [row for row in written if row["corpus"] == place and row["way"] == way]
        ax.plot([row["entropy"] for row in rows], [row["repetition_2"] for row in rows], marker=marker, color=colour, markersize=11 if marker == "*" else 5, linestyle="-" if len(rows) > 1 else "", label=way)
    ax.set(title=place, xlabel="entropy of the words written (nats)", ylabel="repeated bigrams (share)")
axes[0, 0].legend(fontsize=7)
plt.show()

# %%
for place in worlds:
    for way in ("GPT", "canvas, surest first", "blocks of 1, speculation"): print(f"{place}, {way}, temperature {temperatures[0]}: {next((text for text in samples[place, way, temperatures[0]] if text.strip()), '')[:300]!r}")

# %% [markdown]
# ## The report

# %%
settings = dict(corpora=corpora, few=few, seeds=seeds, hidden_size=hidden_size, num_heads=num_heads, batch_size=batch_size, lr=lr, grid_part=grid_part, scored_texts=scored_texts, bound_texts=bound_texts, draws=draws, written_texts=written_texts, temperatures=temperatures, precision=resolve_precision(precision, device))
report = Path(out_dir) / "report.json"
report.parent.mkdir(parents=True, exist_ok=True)
kept = {"settings": settings, "entropy_of_tales": Tales().entropy(), "gigaflop_per_update": gigaflop, "tuning": tuning, "chosen": [{"corpus": place, "model": who, "Muon's rate": rate} for (place, who), rate in best_lr.items()], "runs": runs, "results": results, "slopes": slopes, "above_the_truth": gaps, "frontier": frontier,
        "written": [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in written]}
report.write_text(json.dumps(kept, indent=1) + "\n");

# %%
assert all(row["low"] <= row["bits per byte"] <= row["high"] and row["bits per byte"] > 0 for row in results)
for place in worlds:
    spent = {row["model"]: row["teraflop"] for row in runs if row["corpus"] == place}
    assert all(abs(each / spent["canvas"] - 1) < 0.25 for each in spent.values()), spent
