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
# # The recipe: what each ingredient of training is worth
#
# > Mask ratios, complementary masks, suffixes, begin tokens, carried latents, averaged weights and blocks, each alone on a plain canvas at equal operations, on four texts; then the best of them together.

# %% [markdown]
# <!-- made: verdict_objective -->
#
# <!-- figure: fig-objective-recipe -->

# %% [markdown]
# A masked model learns from whichever masks it is shown. The published recipe hides a share of the tokens that is drawn evenly from 10% to 100%, and papers propose better ones: shares drawn near the middle [@bell], each text twice with opposite masks [@pgm], some rows with a masked suffix [@aogpt], a latent that is carried from call to call [@loopholing], and blocks with their own range of shares [@blockdiffusion].
#
# Most of that evidence comes from models of 100 million parameters and weeks of training. This report asks for the same at the scale of this book. Every row gets the same number of operations, a learning rate from a grid that grows until the best is inside, and two seeds. What is measured is the bound on other texts, in bits per byte, and exactly from left to right.

# %% tags=["parameters"]
out_dir = "reports/objective"
worlds = [
    dict(name="tales", corpus="tales", tokenizer="word", vocab_size=None, length=72),
    dict(name="tinystories", corpus="tinystories", tokenizer="unigram", vocab_size=2000, length=64),
    dict(name="shakespeare, characters", corpus="tinyshakespeare", tokenizer="char", vocab_size=None, length=64),
    dict(name="shakespeare, BPE", corpus="tinyshakespeare", tokenizer="bpe", vocab_size=512, length=64),
]
limit = 40_000  # stories read
updates = 320  # of the plain canvas; the others get as many as cost the same
seeds = [0, 1]
tested = 128
exactly_tested = 16  # texts scored from left to right, a call for each token
draws = 4  # masks of each text, for the bound
tuned = 96  # other texts, on which learning rates are chosen
grid_part = 0.3  # of the updates, for each learning rate
muon_lrs = [0.01, 0.02, 0.04]  # and further ones until the best is inside
most_rates = 6
batch_size = 32
hidden_size = 128
num_heads = 4
num_layers = 2
num_refine_steps = 2
suffix_share = 0.1
ema_decay = 0.99
clipped = {"4": [0.45, 0.95], "16": [0.3, 0.8]}  # ranges of mask ratios by block length
device = None  # to compute on: cpu, cuda or mps; the best there is where None
precision = "auto"  # of training
compile_blocks = True

# %%
import copy
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
import matplotlib.pyplot as plt
import pandas as pd
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from shimmer.canvases import encode_corpus
from shimmer.corpora import load_corpus
from shimmer.corruption import Batch, clean_half, derive_noise, mask_tokens, masked_loss, predicted_tokens
from shimmer.devices import autocast, pick_device, resolve_precision
from shimmer.gpt import GPTConfig, GPTModel
from shimmer.layers import padding_mask
from shimmer.likelihood import Interval, bootstrap_interval, left_to_right_nll, nelbo
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.objectives import MaskedLM, NextToken
from shimmer.schedules import Stage, TrainConfig
from shimmer.tokenizers import train_tokenizer
from shimmer.training import fit, flops_per_update

# %% [markdown]
# ## Four texts
#
# Validation texts are split: the first are for the results, the last for choosing learning rates.

# %%
device, began = pick_device(device), time.perf_counter()
plt.style.use("shimmer.book")

class World(NamedTuple):
    encoded: object  # train and tokenizer
    test: torch.Tensor  # [tested, L]
    other: torch.Tensor  # [tuned, L]
    sizes: torch.Tensor  # [tested] bytes of each text

def world_of(corpus, tokenizer, vocab_size, length, **_):
    amount = {"tales": 3 * updates * batch_size, "tinystories": limit}.get(corpus)
    encoded = encode_corpus(text := load_corpus(corpus, limit=amount), train_tokenizer(text, tokenizer, vocab_size), length)
    ids = encoded.valid["ids"]
    most = min(2 * tested, len(ids) // 2)
    sizes = torch.tensor([len(encoded.tokenizer.decode(row.tolist()).encode()) for row in ids[:most]])
    written = sizes > 0  # an empty text has no bits per byte
    return World(encoded, ids[:most][written][:tested], ids[most : most + tuned], sizes[written][:tested])

found = {spec["name"]: world_of(**spec) for spec in worlds}
pd.DataFrame([{"text": name, "tokens known": world.encoded.tokenizer.vocab_size, "canvas": world.test.shape[1], "canvases": len(world.encoded.train), "tested": len(world.test), "bytes a token": (world.sizes.sum() / predicted_tokens(world.encoded.tokenizer, world.test).sum()).item()} for name, world in found.items()]).set_index("text").round(2)


# %% [markdown]
# ## The ingredients
#
# **A bell of ratios.** Shares near the middle are drawn more often, with density $p(t) = \tfrac12 + 3t(1-t)$, and each row's loss is divided by $p(t)$, so that the loss is still the bound. The extremes, where a loss says little, are seen half as often. To draw from $p$, its distribution function $\tfrac12 t + \tfrac32 t^2 - t^3$ is inverted.

# %%
def bell(u):  # [...] uniform -> ratios, and what a row's loss is weighted by
    t = torch.full_like(u, 0.5)
    low, high = torch.zeros_like(u), torch.ones_like(u)
    for _ in range(24):
        above = 0.5 * t + 1.5 * t**2 - t**3 > u
        low, high = torch.where(above, low, t), torch.where(above, t, high)
        t = (low + high) / 2
    return t, 1 / (0.5 + 3 * t * (1 - t))

u = (torch.arange(100_000) + 0.5) / 100_000
t, weight = bell(u)
print(f"mean of the weights {weight.mean():.4f}, of t times its weight {(t * weight).mean():.4f}, between a quarter and three quarters {((t - 0.5).abs() < 0.25).float().mean():.0%}")
assert abs(weight.mean() - 1) < 1e-3 and abs((t * weight).mean() - 0.5) < 1e-3

# %% [markdown]
# **Complementary masks.** Half of the batch's texts, each twice: what one copy hides the other shows. All of it is a change of the noise, since `mask_tokens` hides the positions with the least noise and as many as the first column says. One minus the noise hides the others. Rounded up on both sides, one token is hidden in both copies, and so every count from 1 to $L$ stays equally likely.
#
# **Suffixes.** In a tenth of the rows the noise falls with the position: what is hidden is the end.

# %%
def complemented(batch):
    half = slice(len(batch.ids) // 2)
    return replace(batch, ids=batch.ids[half].repeat(2, 1), noise=torch.cat([batch.noise[half], 1 - 2**-24 - batch.noise[half]]))

def with_suffixes(batch, share):
    L = batch.ids.shape[1]
    falling = torch.arange(L - 1, -1, -1, device=batch.noise.device) / L
    rows = derive_noise(batch.noise, 3)[:, :1] < share
    return replace(batch, noise=torch.cat([batch.noise[:, :1], torch.where(rows, falling, batch.noise[:, 1:])], 1))

generator = torch.Generator().manual_seed(0)
batch = Batch(torch.zeros(4, 12, dtype=torch.int64), torch.rand(4, 13, generator=generator))
for row in mask_tokens(complemented(batch).noise, (1e-6, 1.0)).masked.int(): print("".join("·█"[n] for n in row), end="  ")
print()
for row in mask_tokens(with_suffixes(batch, 0.5).noise, (1e-6, 1.0)).masked.int(): print("".join("·█"[n] for n in row), end="  ")
both = mask_tokens(complemented(batch).noise, (1e-6, 1.0)).masked
assert ((both[:2] | both[2:]).all(1) & ((both[:2] & both[2:]).sum(1) <= 1)).all()


# %%
@dataclass(frozen=True)
class Recipe(MaskedLM):
    bell: bool = False
    complementary: bool = False
    suffixes: float = 0.0

    def __call__(self, model, batch):
        if self.complementary: batch = complemented(batch)
        if self.suffixes: batch = with_suffixes(batch, self.suffixes)
        if not self.bell: return super().__call__(model, batch)
        ratio, weight = bell(batch.noise[:, 0])
        batch = replace(batch, noise=torch.cat([ratio[:, None], batch.noise[:, 1:]], 1))
        mask = mask_tokens(batch.noise, self.mask_ratio, predicted_tokens(model.config, batch.ids))
        canvas = batch.ids.masked_fill(mask.masked, model.config.mask_token_id)
        logits = model.denoise(canvas, at=mask.masked, **clean_half(model.config, batch.ids)).logits
        nats = F.cross_entropy(logits, batch.ids[mask.masked], reduction="none")
        return {"loss": masked_loss(nats * weight[:, None].expand_as(mask.masked)[mask.masked], mask)}


# %% [markdown]
# **Blocks.** The library's clean half is causal token by token, so that one cache serves all block lengths. In the paper it looks both ways within a block [@blockdiffusion], which sees more and can be cached at one block length alone:

# %%
class BothWaysWithin(LatentCanvasModel):
    "Blocks whose clean tokens see all of their own block."
    def places(self, ids):
        angles, mask = super().places(ids)
        L, front = ids.shape[1], int(self.config.begin_token)
        if mask is None or not self.reads_clean(L): return angles, mask
        block = torch.arange(L, device=ids.device) // self.config.block_length
        sees = torch.ones(front + L, front + L, dtype=torch.bool, device=ids.device)
        sees[:front, front:] = False
        sees[front:, front:] = block[:, None] >= block
        if (real := padding_mask(ids, self.config.pad_token_id)) is not None: sees = sees & F.pad(real, (front, 0), value=True)[:, None, None]
        mask = mask.expand(len(ids), -1, -1, -1).clone()
        mask[..., : front + L, : front + L] = sees
        return angles, mask

class AskedTwice(LatentCanvasModel):
    "A canvas that carries its latent, read with the latent of a first call on the same canvas."
    def denoise(self, ids, state=None, at=None, **steps):
        return super().denoise(ids, state=super().denoise(ids, **steps).state, at=at, **steps)


# %% [markdown]
# A recipe is a config and an objective. Plain is the published range of ratios on the canvas of the other reports. Its average of weights is kept beside its last ones, so that "averaged weights" are the same runs, read otherwise.

# %%
class Plan(NamedTuple):
    objective: MaskedLM = MaskedLM()
    config: dict = {}
    ema_decay: float = 0.0
    kind: type = LatentCanvasModel

ALL = (1e-6, 1.0)
BEGIN = dict(begin_token=True, position_embedding=False)
blocks = lambda b, ratios=ALL, kind=LatentCanvasModel, **more: Plan(MaskedLM(tuple(ratios)), BEGIN | dict(block_length=b) | more, kind=kind)
PLANS = {
    "plain": Plan(ema_decay=ema_decay),
    "all ratios": Plan(MaskedLM(ALL)),
    "bell": Plan(Recipe(ALL, bell=True)),
    "complementary": Plan(Recipe(ALL, complementary=True)),
    "suffixes": Plan(Recipe(suffixes=suffix_share)),
    "begin token": Plan(config=BEGIN),
    "carried latent": Plan(config=dict(carry_latent=True)),
    "blocks of 16": blocks(16),
    "blocks of 16, clipped": blocks(16, clipped["16"]),
    "blocks of 16, both ways": blocks(16, kind=BothWaysWithin),
    "blocks of 16, position vectors": blocks(16, position_embedding=True),
    "blocks of 4": blocks(4),
    "blocks of 4, clipped": blocks(4, clipped["4"]),
}


# %%
def canvas_of(place, plan, seed):
    torch.manual_seed(seed)
    tok, L = found[place].encoded.tokenizer, found[place].test.shape[1]
    options = dict(position_embedding=True, qk_norm=True, mask_token_id=tok.mask_token_id, pad_token_id=tok.pad_token_id) | plan.config
    return plan.kind(LatentCanvasConfig(tok.vocab_size, hidden_size, num_layers, num_heads, num_refine_steps, L, **options))

def gpt_of(place, seed, layers=None):
    torch.manual_seed(seed)
    tok, L = found[place].encoded.tokenizer, found[place].test.shape[1]
    make = lambda layers: GPTModel(GPTConfig(tok.vocab_size, hidden_size, layers, num_heads, L, qk_norm=True, bos_token_id=tok.eos_token_id or 0, pad_token_id=tok.pad_token_id))
    if layers is None: layers = min(range(1, 7), key=lambda n: abs(size(make(n)) - size(canvas_of(place, PLANS["plain"], 0))))
    torch.manual_seed(seed)
    return make(layers)

def size(model): return sum(p.numel() for p in model.parameters())

def model_of(place, who, seed): return gpt_of(place, seed) if who == "GPT" else canvas_of(place, PLANS[who], seed)
def objective_of(who): return NextToken() if who == "GPT" else PLANS[who].objective

def cost(place, who): return flops_per_update(model_of(place, who, 0), objective_of(who), batch_size, found[place].test.shape[1])
def num_updates(place, who, share=1.0): return max(1, round(share * updates * cost(place, "plain") / cost(place, who)))


# %%
pd.DataFrame([{"text": name, **{who: num_updates(name, who) for who in ("plain", "carried latent", "blocks of 16", "blocks of 4", "GPT")}, "parameters": size(model_of(name, "plain", 0)), "GPT's": size(gpt_of(name, 0))} for name in found]).set_index("text")

# %% [markdown]
# Blocks read each text twice, once clean and once with holes, and so get about half of the updates. A carried latent costs a call without a gradient.

# %%
torch._dynamo.config.recompile_limit = 1024  # models of one shape share what is compiled

def train(place, who, seed, muon_lr, share=1.0):
    world, steps = found[place], num_updates(place, who, share)
    data = world.encoded.train
    epochs = -(-steps * batch_size // len(data))
    stage = Stage(who, objective_of(who), epochs, min(1.0, steps * batch_size / len(data) / epochs))
    config = TrainConfig(batch_size=batch_size, device=device, lr=3e-3, optimizer="muon", muon_lr=muon_lr, warmup_steps=min(50, steps // 5), precision=precision, seed=seed, progress=False, compile=compile_blocks, ema_decay=0.0 if who == "GPT" else PLANS[who].ema_decay,
                         validate_every=10**9, validation_texts=2, validation_draws=1, checkpoint_every=10**9, checkpoint_dir=directory(place, who, seed, muon_lr, share))
    return fit(model_of(place, who, seed), data, (stage,), config, valid=world.other[:2], resume=True).model

def directory(place, who, seed, muon_lr, share): return f"{out_dir}/{place} {who} {seed} {muon_lr:g} {share:g}"

def last_weights(place, who, seed, muon_lr, share=1.0):
    "The model of a run that keeps an average, with the weights of its last update."
    model, tensors = model_of(place, who, seed).to(device).eval(), load_file(f"{directory(place, who, seed, muon_lr, share)}/training_state/tensors.safetensors")
    for name, p in model.named_parameters(): p.data.copy_(tensors[f"weights.{name}"])
    return model

def in_order(model, ids):  # [N] nats, exactly
    with autocast(device, precision): return left_to_right_nll(model, ids)

def bound(model, ids):  # [N] nats; a GPT's are exact
    if isinstance(model, GPTModel): return in_order(model, ids)
    with autocast(device, precision): return nelbo(model, ids, draws=draws)


# %% [markdown]
# ## Learning rates
#
# Four are searched for on each text: that of the plain canvas, which its ingredients share, those of blocks of 16 and of 4, and the GPT's. What helps together gets a search of its own. Each is the best of a grid on texts and a seed that aren't used again, after a third of the updates, and the grid doubles or halves until the best has a neighbour on both sides. That an ingredient gets the plain recipe's rate rather favours the plain recipe.

# %%
grid, best_lr = [], {}
FAMILY = {"GPT": "GPT", "together": "together"} | {who: " ".join(who.split(",")[0].split()[:3]) for who in PLANS if who.startswith("blocks")}
def tune(place, who):
    tried = {}
    def attempt(muon_lr):
        model = train(place, who, 100, muon_lr, grid_part)
        if who == "plain": model = last_weights(place, who, 100, muon_lr, grid_part)
        tried[muon_lr] = bound(model, found[place].other).mean().item()
        grid.append({"text": place, "recipe": who, "Muon's rate": muon_lr, "nats a token": tried[muon_lr] / found[place].test.shape[1]})
    for muon_lr in muon_lrs: attempt(muon_lr)
    while (best := min(tried, key=tried.get)) in (min(tried), max(tried)) and len(tried) < most_rates:
        attempt(best * 2 if best == max(tried) else best / 2)
    return best

# %% [markdown]
# ## Each ingredient alone

# %%
def readings(place, who, seed):  # name -> a model to be scored
    model = train(place, who, seed, best_lr[place, who])
    if who == "plain": return {who: last_weights(place, who, seed, best_lr[place, who]), "plain, averaged weights": model}
    if who == "GPT" or not model.carries_state: return {who: model}
    twice = copy.copy(model)
    twice.__class__ = AskedTwice
    return {who: model, f"{who}, asked twice": twice}


# %%
nats, exact = {}, {}
def study(place, who):
    family = FAMILY.get(who, "plain")
    if (place, family) not in best_lr: best_lr[place, family] = tune(place, family)
    best_lr[place, who] = best_lr[place, family]
    world, read = found[place], {}
    for seed in seeds:
        for name, model in readings(place, who, seed).items():
            read.setdefault(name, []).append((bound(model, world.test), in_order(model, world.test[:exactly_tested])))
    for name, each in read.items(): nats[place, name], exact[place, name] = (torch.stack(values) for values in zip(*each))
    print(f"{time.perf_counter() - began:5.0f} s  {place}, {who}: rate {best_lr[place, who]:g}, " + ", ".join(f"{(values.sum() / world.sizes.sum() / len(values) / math.log(2)).item():.3f}" for (where, _), values in nats.items() if (where, _) in [(place, name) for name in read]) + " bits a byte", flush=True)

for place in found:
    for who in ("plain", "GPT", *[who for who in PLANS if who != "plain"]): study(place, who)


# %%
def bits(interval): return Interval(*(value / math.log(2) for value in interval))

def row_of(place, who):
    sizes, n = found[place].sizes, exactly_tested
    made = bits(bootstrap_interval(nats[place, who], sizes))
    gain = bits(bootstrap_interval(nats[place, who] - nats[place, "plain"], sizes))
    straight = bits(bootstrap_interval(exact[place, who], sizes[:n]))
    recipe = who.removesuffix(", asked twice").removesuffix(", averaged weights")
    return {"text": place, "recipe": who, "value": made.value, "low": made.low, "high": made.high, "by seed": [(row.sum() / sizes.sum() / math.log(2)).item() for row in nats[place, who]],
            "against plain": gain.value, "difference low": gain.low, "difference high": gain.high, "left to right": straight.value, "left to right low": straight.low, "left to right high": straight.high,
            "ratio to GPT": made.value / bits(bootstrap_interval(nats[place, "GPT"], sizes)).value, "updates": num_updates(place, recipe), "Muon's rate": best_lr[place, recipe]}

results = [row_of(place, who) for place, who in nats]
pd.DataFrame(results).pivot(index="recipe", columns="text", values="value").loc[list(dict.fromkeys(who for _, who in nats)), list(found)].round(3)

# %% [markdown]
# Differences to the plain recipe, text by text and seed by seed; below zero the ingredient helps:

# %%
told = lambda row: f"{row['against plain']:+.3f} [{row['difference low']:+.3f}, {row['difference high']:+.3f}]"
pd.DataFrame([{"recipe": row["recipe"], "text": row["text"], "difference": told(row)} for row in results if row["recipe"] != "plain"]).pivot(index="recipe", columns="text", values="difference").loc[list(dict.fromkeys(who for _, who in nats if who != "plain")), list(found)]

# %% [markdown]
# Exactly, along one order, from left to right, on fewer texts:

# %%
pd.DataFrame(results).pivot(index="recipe", columns="text", values="left to right").loc[list(dict.fromkeys(who for _, who in nats)), list(found)].round(3)


# %% [markdown]
# ## The winners together
#
# A winner is below the plain recipe in the mean over the texts, and beyond doubt on two of them at least.

# %%
def wins(who):
    rows = [row for row in results if row["recipe"] == who]
    return sum(row["against plain"] for row in rows) < 0 and sum(row["difference high"] < 0 for row in rows) >= min(2, len(rows))

CANVAS = ["all ratios", "bell", "complementary", "suffixes", "begin token", "carried latent", "plain, averaged weights"]
winners = [who for who in CANVAS if wins(who)]
print("alone, these help:", ", ".join(winners) or "none")

def together(winners, config):
    has = lambda who: who in winners
    objective = Recipe(ALL if has("all ratios") or has("bell") or has("complementary") else MaskedLM().mask_ratio, bell=has("bell") and not has("carried latent"), complementary=has("complementary"), suffixes=suffix_share if has("suffixes") else 0.0)
    for who in winners: config = (PLANS[who].config if who in PLANS else {}) | config
    return Plan(objective, config, ema_decay if has("plain, averaged weights") else 0.0)

PLANS["together"] = together(winners, {})
for place in found:
    if len(winners) != 1: study(place, "together")
    else:  # one alone is all of them together
        for held in (nats, exact, best_lr):
            if (place, winners[0]) in held: held[place, "together"] = held[place, winners[0]]
results = [row_of(place, who) for place, who in nats]
pd.DataFrame([{"text": row["text"], "recipe": row["recipe"], "bits per byte": row["value"], "against plain": told(row), "left to right": row["left to right"], "ratio to GPT": row["ratio to GPT"]} for row in results if row["recipe"] in ("GPT", "plain", "together", "blocks of 16", "blocks of 4")]).set_index(["text", "recipe"]).sort_index().round(3)

# %% [markdown]
# ## All at a glance

# %%
#| label: fig-objective-recipe
#| fig-cap: "Bits per byte against the plain recipe at equal operations, for each ingredient alone and for those that help together; the bound, on four texts. Left of the line an ingredient helps. 95% intervals over seeds and texts."
#| fig-alt: "Four panels, one for each text, with a row for each ingredient: a dot with an interval, left or right of a vertical line at zero."
names = [who for who in dict.fromkeys(who for _, who in nats) if who not in ("plain", "GPT")][::-1]
fig, axes = plt.subplots(1, len(found), figsize=(11, 4.2), sharey=True, layout="constrained", squeeze=False)
for ax, place in zip(axes[0], found):
    for y, who in enumerate(names):
        row = next(row for row in results if (row["text"], row["recipe"]) == (place, who))
        ax.errorbar(row["against plain"], y, xerr=[[row["against plain"] - row["difference low"]], [row["difference high"] - row["against plain"]]], fmt="D" if who == "together" else "s" if who.startswith("blocks") else "o", color="black", markersize=4, linewidth=1)
    ax.axvline(0, color="0.6", linewidth=1)
    ax.set(title=place, xlabel="bits per byte against plain", yticks=range(len(names)), yticklabels=names)
plt.show()

# %% [markdown]
# ## The report

# %%
settings = dict(worlds=worlds, updates=updates, seeds=seeds, tested=[len(world.test) for world in found.values()], exactly_tested=exactly_tested, draws=draws, grid_part=grid_part, batch_size=batch_size, hidden_size=hidden_size, num_layers=num_layers, num_refine_steps=num_refine_steps, suffix_share=suffix_share, ema_decay=ema_decay, clipped=[[int(b), ratios] for b, ratios in clipped.items()], precision=resolve_precision(precision, device))
report = Path(out_dir) / "report.json"
report.parent.mkdir(parents=True, exist_ok=True)
report.write_text(json.dumps({"settings": settings, "grid": grid, "winners": winners, "results": results}, indent=1) + "\n");

# %%
assert all(row["low"] <= row["value"] <= row["high"] and math.isfinite(row["value"]) for row in results)
assert all(math.isclose(row["against plain"], 0, abs_tol=1e-9) for row in results if row["recipe"] == "plain")
