"""What the book's tables hold: which figures of which reports, the claims and their verdicts, the architectures compared.

A figure is named by its report and a path into the report's JSON and is never typed. A new row is one entry of RESULTS, or of
an architecture's `measured`; a path that leads nowhere, or a report that is missing, is an error."""
import os
import re
from statistics import mean
from typing import NamedTuple

from book import RESULTS as KEPT, NBS, colab_url, contents, name, promise, published, report, title

VERDICTS = {
    "false": "what is said is not so",
    "misread": "the figure is real and does not mean what it is said to mean",
    "unproven": "nothing that was published decides it, and nothing here confirms it",
    "holds in part": "true under conditions that the text does not name",
    "holds": "measured here, and so",
    "open": "not measured here yet",
}
PERCENT = "{:.1%}"


class Row(NamedTuple):
    "A row of the results table."
    what: str  # what was measured, in words
    unit: str
    report: str  # nbs/evals/results/<report>.json
    path: tuple  # into the JSON: a key, the fields that single out one row of a list, or a function of what was reached
    low: tuple = ()  # where the 95% interval begins and ends, as the path does; or only `low`, a standard error, with high = ("±",)
    high: tuple = ()
    form: str = "{:.2f}"


def _versus(corpus, model, measure):
    "Where LIRA against GPT keeps the bits per byte of a model on a corpus, with their interval."
    row = ("results", dict(corpus=corpus, model=model, measure=measure))
    return (*row, "bits per byte"), (*row, "low"), (*row, "high")


def _ends(*row, value, low="low", high="high"):
    "A value and its interval that stand side by side in one row of a report."
    return (*row, value), (*row, low), (*row, high)


def _lowest(model):
    "Of a report's runs, the lowest validation of a model on the way: the mean over seeds, at the number of epochs where it is lowest."
    def lowest(runs):
        lengths = {run["epochs"] for run in runs}
        return min(mean(run["best on the way"] for run in runs if (run["model"], run["epochs"]) == (model, n)) for n in lengths)
    return lowest


LIRA, GPT = ("LIRA", "NELBO"), ("GPT, equal operations", "exact")
RESULTS = [
    Row("LIRA after the quickstart, above the truth on tales", "nats a tale", "quickstart", ("gap_to_truth",), ("gap_standard_error",), ("±",)),
    Row("Its tales that are entirely right, surest first, temperature 0.7", "", "quickstart", ("samplers", "surest first, temperature 0.7", "right"), form=PERCENT),
    Row("Its tales that are entirely right, random order, temperature 1", "", "quickstart", ("samplers", "random order, one a call", "right"), form=PERCENT),
    Row("Its tales that are entirely right, re-masking, thresholds 0.7 and 0.3", "", "quickstart", ("samplers", "re-masking, thresholds 0.7 and 0.3", "right"), form=PERCENT),
    Row("GPT on Tiny Shakespeare, exactly", "bits per byte", "lira_vs_gpt", *_versus("tinyshakespeare", *GPT)),
    Row("LIRA on Tiny Shakespeare at equal operations, at most", "bits per byte", "lira_vs_gpt", *_versus("tinyshakespeare", *LIRA)),
    Row("GPT on TinyStories, exactly", "bits per byte", "lira_vs_gpt", *_versus("tinystories", *GPT)),
    Row("LIRA on TinyStories at equal operations, at most", "bits per byte", "lira_vs_gpt", *_versus("tinystories", *LIRA)),
    Row("Tales: GPT at equal operations, above the truth", "nats a tale", "lira_vs_gpt", *_ends("above_the_truth", "GPT, equal operations: exact", value="value")),
    Row("Tales: LIRA, above the truth", "nats a tale", "lira_vs_gpt", *_ends("above_the_truth", "LIRA: NELBO", value="value")),
    Row("One refinement at equal operations, above the truth", "nats a tale", "refinement_steps", *_ends("results", dict(model="K = 1, equal operations"), value="above the truth")),
    Row("Eight refinements at equal operations, above the truth", "nats a tale", "refinement_steps", *_ends("results", dict(model="K = 8, equal operations"), value="above the truth")),
    Row("Four stages in quarters, against the last stage alone", "nats a tale", "curriculum", *_ends("results", dict(curriculum="four stages, quarters"), value="against the last stage alone", low="difference low", high="difference high")),
    Row("LIRA against GPT with dropout after 4 epochs of short text", "bits per byte", "epochs", *_ends("results", dict(epochs=4, model="LIRA"), value="against GPT, dropout", low="difference low", high="difference high")),
    Row("Short text, early-stopped: GPT with dropout at its lowest validation", "nats a character", "epochs", ("runs", _lowest("GPT, dropout")), form="{:.3f}"),
    Row("Short text, early-stopped: LIRA at its lowest validation, at most", "nats a character", "epochs", ("runs", _lowest("LIRA")), form="{:.3f}"),
    Row("Imadarem as described, short tales entirely right", "", "gate", *_ends("results", dict(model="as described", way="own policy"), value="right"), form=PERCENT),
    Row("Imadarem repaired, its gate in the likelihood, short tales entirely right", "", "gate", *_ends("results", dict(model="mixture", way="own policy"), value="right"), form=PERCENT),
    Row("Imadarem as described, by keep-the-best in as many calls, short tales entirely right", "", "gate", *_ends("results", dict(model="as described", way="keep the best"), value="right"), form=PERCENT),
    Row("Imadarem repaired, by keep-the-best in as many calls, short tales entirely right", "", "gate", *_ends("results", dict(model="mixture", way="keep the best"), value="right"), form=PERCENT),
    Row("Imadarem repaired, without a gate, by a teacher's entropy and twice the passes, short tales entirely right", "", "gate", *_ends("results", dict(model="no gate", way="own policy"), value="right"), form=PERCENT),
    Row("Wrong tokens told from right ones by the effective gate", "AUROC", "gate", ("known", "mixture", "AUROC"), form="{:.3f}"),
    Row("Molecules: GPT, exactly", "nats a molecule", "gate", *_ends("molecule_likelihood", dict(model="GPT"), value="nats a molecule")),
    Row("Molecules: LIRA at equal operations, at most", "nats a molecule", "gate", *_ends("molecule_likelihood", dict(model="LIRA"), value="nats a molecule")),
    Row("Molecules: Imadarem at equal operations, at most", "nats a molecule", "gate", *_ends("molecule_likelihood", dict(model="Imadarem, gate"), value="nats a molecule")),
    Row("Characters of Tiny Shakespeare: baseline of 108,480 parameters, exactly", "nats a character", "chunk_trm", *_ends("results", dict(group="main", model="baseline"), value="nats per character"), form="{:.3f}"),
    Row("Characters of Tiny Shakespeare: chunk-TRM of the same size at equal operations, exactly", "nats a character", "chunk_trm", *_ends("results", dict(group="main", model="TRM"), value="nats per character"), form="{:.3f}"),
    Row("Refinement against one pass at equal operations, chunks of 2", "nats a character", "chunk_trm", *_ends("worth", "learned positions: refinement (TRM against one pass), equal operations", value="value"), form="{:.3f}"),
    Row("Deep supervision against one step at equal operations, chunks of 2", "nats a character", "chunk_trm", *_ends("worth", "learned positions: deep supervision against one step, equal operations", value="value"), form="{:.3f}"),
    Row("The package's canvas, one token a call, tales entirely right", "", "samplers", *_ends("frontier", dict(rule="one a call, surest first"), value="value"), form=PERCENT),
    Row("The same under an entropy bound of 0.1 nats", "", "samplers", *_ends("frontier", dict(policy="EntropyBound(gamma=0.1)"), value="value"), form=PERCENT),
    Row("The same in 30 calls, written boldly, taken back by its own probability", "", "samplers", *_ends("remasking", dict(rule="guided, bold", judge="probability, as shipped", budget=30), value="value"), form=PERCENT),
    Row("The same in 30 calls, taken back by the published head", "", "samplers", *_ends("remasking", dict(rule="guided, bold", judge="head, as shipped", budget=30), value="value"), form=PERCENT),
    Row("Sudokus of six digits, a canvas, the surest cell a call, solved", "", "puzzles", *_ends("results", dict(model="canvas, surest first"), value="value"), form=PERCENT),
    Row("The same in one call", "", "puzzles", *_ends("results", dict(model="canvas, one call"), value="value"), form=PERCENT),
    Row("A GPT of twice the parameters at equal operations, row by row, solved", "", "puzzles", *_ends("results", dict(model="GPT, 4 layers, row by row"), value="value"), form=PERCENT),
    Row("The same, taught the solver's order", "", "puzzles", *_ends("results", dict(model="GPT, 4 layers, in the solver's order"), value="value"), form=PERCENT),
    Row("A sentence missing from a tale, filled right by a canvas, one token a call", "", "infilling", *_ends("written", dict(gap="a sentence", way="canvas, one a call", temperature=1.0), value="value"), form=PERCENT),
    Row("The same, by a GPT of twice the parameters taught to fill gaps, at equal operations", "", "infilling", *_ends("written", dict(gap="a sentence", way="GPT, fills gaps", temperature=1.0), value="value"), form=PERCENT),
    Row("The same, with eight times the operations", "", "infilling", *_ends("written", dict(gap="a sentence", way="GPT, fills gaps, 8 times the operations", temperature=1.0), value="value"), form=PERCENT),
    Row("The same, by a GPT that sees the left side", "", "infilling", *_ends("written", dict(gap="a sentence", way="GPT, left side", temperature=1.0), value="value"), form=PERCENT),
    Row("Query-key normalisation, against the plain block, one seed", "nats a tale", "lira_options", ("runs", dict(variant="qk_norm", seed=0), "against_plain"), ("runs", dict(variant="qk_norm", seed=0), "against_plain_standard_error"), ("±",)),
    Row("LIRA's perplexity as published: at 30% masked", "", "claims", ("perplexity", "LIRA, 30% masked")),
    Row("The same LIRA's perplexity by its bound, at most", "", "claims", ("perplexity", "LIRA, at most (NELBO)")),
    Row("Calibration error of LIRA's confidence where re-masking reads it", "ECE", "claims", ("confidence", "filled", "ECE"), form="{:.3f}"),
    Row("Share of the machine's matrix-product ceiling, quickstart's training step", "", "speed", ("steps", dict(model="demo", compiled=True), "share_of_ceiling"), form=PERCENT),
    Row("Our GPT's training step against that of transformers' GPT-2 of the same shape", "times as long", "speed", ("beside_gpt2", "times", dict(what="training step"), "ours_over_theirs")),
    Row("The same, a token with a cache", "times as long", "speed", ("beside_gpt2", "times", dict(what="a token with a cache"), "ours_over_theirs")),
]


def find(name: str, path: tuple):
    "The value at a path into a report; ValueError that names report and step where there is none, or more than one."
    value = report(name)
    for depth, step in enumerate(path):
        shown = f"nbs/evals/results/{name}.json has no {' → '.join(map(str, path[: depth + 1]))}: the report has changed, so change .ci/tables.py to what it says now"
        if callable(step):
            value = step(value)
        elif isinstance(step, dict):
            rows = [row for row in value if all(row.get(k) == v for k, v in step.items())] if isinstance(value, list) else []
            if len(rows) != 1:
                raise ValueError(f"{shown} ({len(rows)} rows fit where one must)")
            value = rows[0]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            raise ValueError(shown)
    return value


def figure(row: Row) -> str:
    "The figure of a row, with its interval where the report has one."
    value, show = find(row.report, row.path), lambda v: row.form.format(v).replace("-", "−")
    if row.high == ("±",):
        error = 1.96 * find(row.report, row.low)
        return f"{show(value)} [{show(value - error)},\N{NO-BREAK SPACE}{show(value + error)}]"
    return show(value) + (f" [{show(find(row.report, row.low))},\N{NO-BREAK SPACE}{show(find(row.report, row.high))}]" if row.low else "")


def table(head: list[str], rows: list[list[str]]) -> str:
    "A table in markdown."
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def results_table() -> str:
    "The headline figures of all reports; ValueError or FileNotFoundError where a row has lost its figure."
    rows = []
    for row in RESULTS:
        made = {k: find(row.report, ("made", k)) for k in ("date", "commit")}
        what = f"{row.what}, {row.unit}" if row.unit and row.unit not in row.what else row.what
        rows.append([what, figure(row), f"[{row.report}](evals/{row.report}.ipynb)", made["date"], f"`{made['commit']}`"])
    return table(["measured", "figure", "report", "date", "commit"], rows)


IN_SHORT = {  # a chapter in eight words at most, for the map
    "00_tales.ipynb": "A world of stories whose probabilities are known",
    "01_corpora.ipynb": "Texts from anywhere, read right or refused",
    "02_tokenizers.ipynb": "Texts become ids, and exactly texts again",
    "03_subwords.ipynb": "Pieces learned from text that spell anything",
    "04_canvases.ipynb": "Rows of one length, encoded once, by number",
    "05_corruption.ipynb": "Hiding tokens so that the loss bounds likelihood",
    "06_layers.ipynb": "Rotary positions, attention, SwiGLU, the block",
    "07_models.ipynb": "Two protocols, first weights, saving and loading",
    "08_policies.ipynb": "Which positions to write next, or again",
    "09_objectives.ipynb": "What training minimises, as a value",
    "10_lira.ipynb": "A latent canvas, refined by one block",
    "11_likelihood.ipynb": "Bounds and exact likelihoods, tested against truth",
    "12_schedules.ipynb": "Stages as rows, updates by their number",
    "13_updates.ipynb": "Moving weights in parts, precisions and processes",
    "14_training.ipynb": "One trainer, validated, logged, resumed exactly",
    "15_samplers.ipynb": "One loop that fills canvases, under any policy",
    "16_decoding.ipynb": "The field's rules: exact, fast, taking back",
    "17_speculation.ipynb": "Many tokens a call, verified, with a likelihood",
    "18_appending.ipynb": "One token after another, with its tail cut",
    "19_trajectories.ipynb": "Watch a canvas fill, call by call",
    "20_gpt.ipynb": "The baseline that refinement has to beat",
    "21_metrics.ipynb": "What counting texts can tell, and cannot",
    "22_calibration.ipynb": "Whether a stated confidence comes true",
    "23_imadarem.ipynb": "Write everything, then rewrite what is uncertain",
    "24_chunk_baseline.ipynb": "The rival of the same size, in chunks",
    "25_chunk_trm.ipynb": "A perplexity of 1.01, taken apart and tried",
    "26_puzzles.ipynb": "Sudokus, where refining beats writing in order",
    "27_instructions.ipynb": "Tales on request, and whether they obey",
    "28_blocks.ipynb": "One dial from a GPT to a canvas",
    "29_cli.ipynb": "Train, write, measure and draw from a terminal",
}


def map_table() -> str:
    "The chapters, each in eight words, and where it can be opened; ValueError for a chapter without its words or with too many."
    chapters = [file for _, files in contents() for file in files if file[:2].isdigit()]
    for file in chapters:
        if not 1 <= len(IN_SHORT.get(file, "").split()) <= 8:
            raise ValueError(f"the map says {IN_SHORT.get(file, '')!r} of {file}: give it one to eight words in IN_SHORT of .ci/tables.py")
    rows = [[file[:2], f"[{name(NBS / file)}]({file})", IN_SHORT[file], f"[open]({colab_url(f'nbs/{file}')})"] for file in chapters]
    if published(): return table(["", "chapter", "in eight words", "Colab"], rows)
    return table(["", "chapter", "in eight words"], [row[:3] for row in rows])


def reports_table() -> str:
    "The evaluations, each with what it promises."
    files = [file for _, files in contents() for file in files if file.startswith("evals/")]
    return table(["report", "what it asks"], [[f"[{title(NBS / file)}]({file})", promise(NBS / file)] for file in files])


def gpu_table() -> str:
    "What the GPU kit measured, or how to have it measured where no run is kept."
    if not (KEPT / "gpu.json").exists():
        return "No run on a GPU is kept yet. `make gpu-pack` makes an archive of code and encoded stories; on a machine with a GPU, `make gpu` in the unpacked archive takes nine minutes and needs no network ([Contributing](contributing.qmd))."
    r = report("gpu")
    o, made, rows = r["settings"], r["made"], []
    for who in ("GPT", "canvas", "blocks"):
        speed = r[f"speed of {who}"]
        for score in r[who]["scores"]:
            read = who if score["block length"] is None else f"{who} of {score['block length']}"
            rows.append([read, score["measure"], "{value:.3f} [{low:.3f}, {high:.3f}]".format(value=score["bits per byte"], **score), f"{speed['parameters'] / 1e6:.1f}M", f"{r[who]['updates']:,}", f"{speed['tokens a second']:,.0f}", f"{speed['share of the ceiling']:.0%}"])
    writing = [[row["way"], str(row["batch"]), f"{row['calls']:.1f}", f"{row['tokens a second']:,.0f}"] for row in r["writing"]]
    head = f"One {o['device']}, {o['precision']}, {made['date']}, commit `{made['commit']}`, seed {o['seed']}: equal operations ({r['plan']['gigaflop'] / 1e6:.2f} petaflop each), windows of {o['length']} tokens; {r['tests']['passed']} CUDA tests passed, {r['tests']['failed']} failed. One learning rate for all. The share is that of the fastest matrix product."
    return "\n\n".join([head, table(["model", "measure", "bits per byte", "parameters", "updates", "tokens a second in training", "share"], rows), table(["writing", "texts at once", "calls", "tokens a second"], writing)])


def near(text: str, folder: str = "evals") -> str:
    "Markdown with links that count from a folder of nbs/, as it must read in nbs/ itself."
    return re.sub(r"\]\((?![a-z]+:|#)([^)#]+)", lambda m: f"]({os.path.normpath(os.path.join(folder, m[1]))}", text)


def sentence(text: str) -> str:
    "Text that begins with a capital."
    return text[:1].upper() + text[1:]


def claims_page() -> str:
    "Every headline claim with its verdict and the cells that decide it; ValueError for a verdict that is not one of VERDICTS."
    rows, sections = report("claims")["claims"], []
    for row in rows:
        if row.get("verdict") not in VERDICTS:
            raise ValueError(f"the claim {row['claim']!r} has the verdict {row.get('verdict')!r}: give it one of {', '.join(VERDICTS)} in nbs/evals/claims.ipynb and run that notebook")
    for number, row in enumerate(rows, 1):
        parts = [f"## {number}. {sentence(row['claim'])} {{#claim-{number}}}", f"{row['source']} · **{row['verdict']}**"]
        parts += [f"- **{name}**: {near(row[key])}" for name, key in (("As published", "published"), ("Obtained the same way", "reproduced"), ("Why", "cause"), ("Measured fairly", "fair"))]
        sections.append("\n\n".join([*parts[:2], "\n".join(parts[2:]), f"Proved in {near(row['where'])} and [the claims notebook](evals/claims.ipynb)."]))
    short = table(["source", "claim", "verdict"], [[row["source"], f"[{row['claim']}](#claim-{n})", row["verdict"]] for n, row in enumerate(rows, 1)])
    words = "\n".join(f"- **{word}**: {meaning}." for word, meaning in VERDICTS.items() if word in {row["verdict"] for row in rows})
    return "\n\n".join([short, words, *sections])


class Architecture(NamedTuple):
    "A column of the comparison by construction, and a row of what this book measured."
    name: str
    where: str
    facts: tuple  # in the order of ASPECTS
    measured: dict = {}  # by a name of MEASURES: how the figure is written, its report, its path
    otherwise: str = "not trained here"


ASPECTS = ("attention", "what one call predicts", "training objective", "likelihood", "tokens a call", "can revise", "carried between calls")
MEASURES = ("Tiny Shakespeare, bits per byte", "TinyStories, bits per byte", "tales, bits per byte", "tales right, temperature 1", "tokens a second", "Tiny Shakespeare, nats a character")


def _compared(most, model, measure, way):
    "What LIRA against GPT measured of one of the two."
    bits = lambda corpus: (f"{most}{{:.{3 if corpus == 'tales' else 2}f}}", "lira_vs_gpt", _versus(corpus, model, measure)[0])
    row = ("written", dict(corpus="tales", way=way, temperature=1.0))
    figures = (bits("tinyshakespeare"), bits("tinystories"), bits("tales"), ("{:.0%}", "lira_vs_gpt", (*row, "right")), ("{:,.0f}", "lira_vs_gpt", (*row, "tokens_per_second")))
    return dict(zip(MEASURES, figures))


ARCHITECTURES = [
    Architecture("GPT", "[@gpt], [A fair rival: GPT](20_gpt.ipynb)", ("causal", "the next token", "next-token cross-entropy: exact nats", "exact, one call a text", "1", "no", "keys and values of what was read"), _compared("", *GPT, "GPT")),
    Architecture("BERT", "[@bert]", ("both ways", "the masked tokens", "masked cross-entropy at one ratio", "none: the objective is no bound", "not made to write", "no", "nothing")),
    Architecture("LLaDA", "[@llada]", ("both ways", "every masked token", "masked cross-entropy over all ratios, each weighted by 1/t: a bound", "a bound; exact along an order", "any number", "by re-masking", "nothing")),
    Architecture("LIRA", "[@lira], [LIRA](10_lira.ipynb)", ("both ways, one block K times", "every masked token, and confidence", "masked cross-entropy over all ratios, and the confidence head's", "a bound; exact along an order", "any number", "by re-masking", "nothing; the latent, as an option"), _compared("at most ", *LIRA, "LIRA, random order")),
    Architecture("Imadarem", "[@imadarem; @imadaremv], [Imadarem and its gate](23_imadarem.ipynb)", ("both ways, told how much is known", "every token, and whether to write it again", "likelihood of keeping or writing at every position, ratios 1 − t/K", "a bound; exact along an order", "all, then any number again", "by its gate, or by a teacher's entropy", "its last predictions, and the time"),
                 {"tales right, temperature 1": ("{:.0%}", "gate", ("tales", dict(model="mixture", way="one a call"), "right"))}),
    Architecture("TRM, in chunks", "[@trm], [@chunktrm], [Chunks that are refined](25_chunk_trm.ipynb)", ("causal over the context, both ways in a chunk", "the next chunk of tokens", "cross-entropy of the chunk, at each supervised step", "exact: a product of marginals in a chunk", "a chunk, or fewer", "inside a call, before it is written", "nothing; draft and reasoning state inside a call"),
                 {"Tiny Shakespeare, nats a character": ("{:.2f}", "chunk_trm", ("results", dict(group="main", model="TRM"), "nats per character"))}),
]


def architectures_table() -> str:
    "The architectures side by side, as they are built."
    rows = [["**described in**", *(a.where for a in ARCHITECTURES)]]
    rows += [[f"**{aspect}**", *(a.facts[i] for a in ARCHITECTURES)] for i, aspect in enumerate(ASPECTS)]
    return table(["", *(a.name for a in ARCHITECTURES)], rows)


def measured_table() -> str:
    "What this book measured of the architectures; ValueError for a measure that the table has no column for."
    rows = []
    for a in ARCHITECTURES:
        if unknown := set(a.measured) - set(MEASURES):
            raise ValueError(f"{a.name} has the measures {', '.join(sorted(unknown))}, for which MEASURES has no column: add them there")
        shown = {what: form.format(find(name, path)) for what, (form, name, path) in a.measured.items()}
        rows.append([f"**{a.name}**", *(shown.get(what, "–" if shown else a.otherwise) for what in MEASURES)])
    return table(["", *MEASURES], rows)
