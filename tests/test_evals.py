"""The evaluation notebooks run from end to end with small parameters, and the JSON they write says what it should."""
import ast
import gzip
import json
import math
import os
from pathlib import Path
from unittest.mock import patch

import papermill
import pytest

ROOT = Path(__file__).parent.parent
OWN_TEXT = ("It was the best of times, it was the worst of times, it was the age of wisdom. " * 60 + "\n") * 20
TINY = dict(batch_size=4, hidden_size=16, num_heads=2, draws=2, seeds=[0, 1])
SMALL = dict(
    quickstart=dict(train_tales=1600, batch_size=16, hidden_size=32, num_layers=1, num_heads=2, compile_blocks=False, judged_tales=4, valid_tales=16, valid_draws=4),
    speed=dict(small=True, repeats=1, encode_megabytes=0.02),
    puzzles=dict(train_puzzles=60, names=2, tested=20, seeds=[0, 1], updates=4, batch_size=8, hidden_size=16, num_heads=2, num_layers=1, num_refine_steps=2, gpt_layers=[1], refinements=[1, 2, 3], test_refinements=[1, 2], muon_lrs=[0.01, 0.02], grid_updates=2, grid_puzzles=5, study_updates=2, studied=10, head_updates=2, compile_blocks=False),
    infilling=dict(updates=3, stories_updates=3, seeds=[0, 1], stories_seeds=[0], tested=3, tuned=2, drafts=2, edited=2, longer=2, stories_corpus="tales", stories_tokenizer="word", stories_vocab=None, stories_limit=200, stories_length=24, batch_size=4, hidden_size=16, num_heads=2, num_layers=1, gpt_layers=1, muon_lrs=[0.01, 0.02], temperatures=[1.0], compile_blocks=False),
    nine_digits=dict(corpus_name="sudoku-6", train_puzzles=12, names=10, tested=8, tuned=6, seeds=[0, 1], updates=4, grid_part=0.5, studied=4, batch_size=4, hidden_size=16, num_heads=2, num_layers=1, num_refine_steps=2, gpt_layers=1, test_refinements=[1, 2], muon_lrs=[0.02, 0.04], lesson_corpus="sudoku-4", lesson_puzzles=12, lesson_updates=2, lessons={"row by row": [[2, 2]], "solver's order": [[2, 1]]}, compile_blocks=False),
    depth=dict(updates={"puzzles": 3, "tales": 3, "stories": 3}, seeds=[0, 1], tested=12, tuned=8, draws=2, train_puzzles=20, names=2, stories_corpus="tales", stories_tokenizer="word", stories_vocab=None, stories_limit=200, stories_length=24, batch_size=4, hidden_size=16, num_heads=2, num_layers=1, muon_lrs=[0.01, 0.02], compile_blocks=False),
    instructions=dict(updates=6, tuning_updates=3, seeds=[0, 1], asked=6, tuned=3, scored=6, draws=2, temperatures=[1.0], batch_size=4, hidden_size=16, num_heads=2, num_layers=1, gpt_layers=1, muon_lrs=[0.01, 0.02], tuning_lrs=[0.005, 0.01], compile_blocks=False),
    samplers=dict(seeds=[0, 1], judged_tales=2, replayed_tales=2, grid_tales=2, budgets=[6, 30], tuned_up_to=6, head_updates=2, verify_updates=2, stories_corpus="OWN_TEXT", stories_tokenizer="char", stories_vocab=None, stories_limit=20000, stories_length=12, stories_updates=3, stories_written=2, batch_size=4, hidden_size=16, num_layers=1, num_heads=2),
    lira_options=dict(steps=3, seeds=[0, 1], batch_size=4, hidden_size=16, num_layers=1, num_heads=2, valid_tales=8, draws=2),
    lira_vs_gpt=dict(**TINY, corpora=[dict(name="tales", tokenizer="word", vocab_size=None, max_seq_len=72, num_layers=1, updates=10), dict(name="OWN_TEXT", tokenizer="char", vocab_size=None, max_seq_len=16, num_layers=1, updates=10)],
                     candidates=[dict(muon_lr=0.0025), dict(muon_lr=0.005, dropout=0.1)], scored_texts=8, ordered_texts=4, written_texts=2, temperatures=[0.7, 1.0]),
    refinement_steps=dict(**TINY, refinements=[1, 2], updates=6, equal_operations_of=2, num_layers=1, scored_texts=8),
    curriculum=dict(**TINY, updates=24, num_layers=1, scored_texts=8, judged_tales=2),
    claims=dict(corpus_name="tales", num_samples=2400, tokenizer="word", vocab_size=None, max_seq_len=72, hidden_size=32, num_heads=2, lira_layers=1, gpt_layers=2, updates=150, batch_size=16, muon_lr=0.01, scored_texts=32, written_texts=5),
    gate=dict(short_updates=6, tales_updates=4, molecule_updates=4, seeds=[0, 1], hidden_size=16, num_layers=2, num_heads=2, refinement_steps=3, batch_size=4, compile_blocks=False, scored_texts=4, draws=2, judged_texts=4, written_molecules=8, gates=[0.1, 0.5], entropies=[0.1, 0.5]),
    epochs=dict(**TINY, corpus_name="OWN_TEXT", train_canvases=16, epochs=[1, 3], num_layers=1, max_seq_len=16, scored_canvases=8),
    chunk_trm=dict(corpus_name="tales", stories_name="tales", stories_limit=200, words_limit=400, seeds=[0, 1], batch_size=4, main_teraflop=4e-5, rotary_teraflop=2e-5, side_teraflop=1e-5, halting_teraflop=2e-5, large_teraflop=3e-5, context_size=8, chunk_sizes=[1, 2, 4],
                   shape=dict(embed_dim=16, n_layers=1, n_heads=2), large=dict(embed_dim=24, n_layers=2, n_heads=2), deep=[2, 2], side=[2, 1], grid=[[1, 1], [2, 1]], layer_counts=[1, 2], claim_updates=[20, 120], scored_pieces=6, scored_tail=8),
)


SMILES = "CCO CCN c1ccccc1 CC(=O)O CC(C)O c1ccncc1 CCOC(=O)C CN1CCCC1 CC(=O)Nc1ccccc1 OCCO CCS C1CCCCC1 CCCl NC(=O)c1ccccc1 COc1ccccc1 Cc1ccccc1 CC#N C=CC CCBr O=C1CCCN1".split()

def a_few_molecules(folder):
    "A stand-in for the corpus moses."
    (folder / "moses").mkdir(parents=True)
    for split, copies in (("train", 6), ("test", 2)):
        with gzip.open(folder / "moses" / f"{split}.smi.gz", "wt") as file: file.write("\n".join(SMILES * copies) + "\n")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    held = {}
    def run(name):
        if name not in held:
            out = tmp_path_factory.mktemp(name)
            (out / "own.txt").write_text(OWN_TEXT)
            parameters = json.loads(json.dumps(SMALL[name]).replace("OWN_TEXT", str(out / "own.txt")))
            if name == "gate": a_few_molecules(out / "data")
            with patch.dict(os.environ, {"SHIMMER_DATA": str(out / "data")} if name == "gate" else {}):
                papermill.execute_notebook(ROOT / f"nbs/evals/{name}.ipynb", out / f"{name}.ipynb", parameters={**parameters, "out_dir": str(out)},
                                           kernel_name="python3", cwd=ROOT, progress_bar=False)
            held[name] = out, json.loads((out / "report.json").read_text())
        return held[name]
    return run


def test_every_evaluation_is_tested():
    assert {path.stem for path in (ROOT / "nbs/evals").glob("*.ipynb")} == set(SMALL)


def test_quickstart(report):
    out, figures = report("quickstart")
    assert figures["nelbo"] > figures["entropy"] > 20
    assert 0 < figures["confidence_right"] < 1 and figures["updates"] == 100
    for row in figures["samplers"].values():
        assert 0 <= row["right"] <= 1 and row["calls"] <= 2 * 72
    for name in ("checkpoint/model.safetensors", "checkpoint/log.jsonl", "generation.gif", "generation.html"):
        assert (out / name).stat().st_size > 100


def test_speed(report):
    _, figures = report("speed")
    assert {row["K"] for row in figures["steps"]} == {1, 2, 4}
    assert all(row["gigaflop"] > 0 and "share_of_ceiling" in row for row in figures["steps"])
    assert figures["precision"] in figures["ceiling_gigaflops"] and {row["precision"] for row in figures["steps"]} == {"fp32", figures["precision"]}
    assert len(figures["samplers"]) == 4 and figures["memory"][1]["megabytes_of_text"] > figures["memory"][0]["megabytes_of_text"]


def test_lira_options(report):
    _, figures = report("lira_options")
    assert {row["seed"] for row in figures["runs"]} == {0, 1}
    assert all(row["nelbo"] > 0 and row["steps"] == 3 for row in figures["runs"])


def test_lira_vs_gpt(report):
    _, figures = report("lira_vs_gpt")
    assert {(row["model"], row["measure"]) for row in figures["results"]} == {("GPT, equal tokens", "exact"), ("GPT, equal operations", "exact")} | {("LIRA", m) for m in ("NELBO", "left to right", *(f"surest first, {k} a step" for k in (1, 2, 4)))}
    for row in figures["results"]: assert 0 < row["low"] <= row["bits per byte"] <= row["high"] and row["lowest seed"] <= row["bits per byte"] * 1.0001 and row["bits per byte"] <= row["highest seed"] * 1.0001
    assert len(figures["differences"]) == 2 * 2 * 5 and all(math.isfinite(row["bits per byte"]) for row in figures["differences"])
    assert all(row["value"] > 0 for row in figures["above_the_truth"].values())
    assert {row["way"] for row in figures["written"]} == {"GPT", "LIRA, random order", "LIRA, surest first", "LIRA, four a call", "the corpus"}


def test_refinement_steps(report):
    _, figures = report("refinement_steps")
    assert {row["model"] for row in figures["results"]} >= {"K = 1, equal data", "K = 2, equal data", "K = 1, equal operations", "K from 1 to 2", "2 layers, no loop"}
    cost = {row["model"]: row["teraflop"] for row in figures["results"]}
    assert cost["K = 1, equal operations"] == pytest.approx(cost["K = 2, equal data"], rel=0.1) and cost["K = 1, equal data"] < cost["K from 1 to 2"] < cost["K = 2, equal data"]
    assert all(row["above the truth"] > 0 for row in figures["results"] + figures["dial"])


def test_curriculum(report):
    _, figures = report("curriculum")
    assert len(figures["results"]) == 4 and all(row["above the truth"] > 0 for row in figures["results"])
    alone = next(row for row in figures["results"] if row["curriculum"] == "the last stage alone")
    assert alone["against the last stage alone"] == 0 and alone["updates"] == 24


def test_epochs(report):
    _, figures = report("epochs")
    assert {(row["model"], row["epochs"]) for row in figures["results"]} == {(name, n) for name in ("LIRA", "GPT", "GPT, dropout") for n in (1, 3)}
    assert all(row["against GPT, dropout"] == 0 for row in figures["results"] if row["model"] == "GPT, dropout")


def test_gate(report):
    _, figures = report("gate")
    variants = ["mixture", "replacement", "supervised", "no gate", "gate without gradient", "leaking", "visible untrained", "as described"]
    assert [*figures["known"]] == variants and {(row["model"], row["way"]) for row in figures["results"]} == {(name, way) for name in variants for way in ("own policy", "one a call", "several a call", "keep the best")}
    for row in figures["written"]:
        assert row["calls"] <= (3 if row["way"] != "one a call" else 72) and sum(row["calls_of_texts"]) == sum(row["stops"].values()) == 4
        assert row["passes"] == pytest.approx(row["calls"] * (2 if row["model"] == "no gate" else 1))
    assert len(figures["sweep"]) == 4 * 2 * 2 and all(row["calls"] <= 6 for row in figures["sweep"])
    untrained = [row for row in figures["knowledge"] if row["model"] in ("gate without gradient", "as described")]
    assert all(row["mean doubt"] > 0.8 for row in untrained)  # the bias of +2 keeps it open
    held_out = figures["molecules"][-1]
    assert held_out["writer"] == "held-out molecules" and held_out["molecules_valid"] == held_out["molecules_read_whole"] == 1 and all(row["molecules_written"] == 8 for row in figures["molecules"])
    assert {row["model"]: row["kind"] for row in figures["molecule_likelihood"]} == {"GPT": "exact", "LIRA": "bound", **{name: "bound" for name in ("Imadarem, gate", "Imadarem, entropy", "Imadarem as described")}}
    assert all(name in figures["summary"] for name in variants)


def test_chunk_trm(report):
    out, figures = report("chunk_trm")
    rows = {(row["group"], row["model"]): row for row in figures["results"]}
    main = {name: rows["main", name] for name in ("baseline", "one pass", "TRM", "TRM, deep supervision")}
    assert all(abs(row["teraflop"] - 4e-5) <= 1.01 * row["teraflop"] / row["batches"] and row["seeds"] == 2 and row["lowest seed"] <= 1.0001 * row["nats per character"] <= 1.0002 * row["highest seed"] for row in main.values())
    assert main["TRM, deep supervision"]["updates"] == 4 * main["TRM, deep supervision"]["batches"] and main["TRM"]["updates"] == main["TRM"]["batches"] == rows["main", "one pass, as many batches as TRM"]["batches"]
    for name in ("one pass", "2 × 1"): assert rows["chunk size, whole chunks", f"{name}, chunks of 1"]["nats per character"] == rows["chunk size, one token kept", f"{name}, chunks of 1"]["nats per character"]
    assert all(0 < row["low"] <= row["nats per character"] <= row["high"] for row in figures["results"]) and all(math.isfinite(x) for row in figures["worth"].values() for x in row.values())
    assert figures["worth"]["learned positions: one pass against the baseline, equal operations"]["value"] == pytest.approx(main["one pass"]["nats per character"] - main["baseline"]["nats per character"])
    assert [row["steps"] for row in figures["halting"]["fixed"]] == list(range(1, 9)) and all(1 <= row["steps"] <= 8 for row in figures["halting"]["adaptive"])
    assert figures["claim"]["TRM, draft from the target"]["own table"] < 1.2 < figures["claim"]["baseline"]["one table"] < figures["claim"]["baseline"]["own table"]
    assert len(list((out / "runs").glob("*.json"))) > 30


def test_claims(report):
    _, figures = report("claims")
    assert {row["source"] for row in figures["claims"]} == {"LIRA", "Imadarem", "Imadarem V", "chunk-TRM"}
    for row in figures["claims"]:
        assert all(row[column] for column in ("claim", "verdict", "published", "reproduced", "cause", "fair", "where"))
        assert row["source"] != "LIRA" or "not measured" not in row["fair"], row["claim"]
    assert figures["weighting"]["bound, nats a token"] == pytest.approx(figures["weighting"]["NELBO, nats a token"], rel=0.05)


def test_the_library_needs_no_notebook_tools():
    for path in (ROOT / "shimmer").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"nbdev", "fastcore", "execnb", "IPython", "papermill"}, path


def test_puzzles(report):
    _, figures = report("puzzles")
    rows = {row["model"]: row for row in figures["results"]}
    assert {"canvas, one call", "canvas, surest first", "GPT, 1 layers, row by row", "GPT, 1 layers, in the solver's order"} <= set(rows)
    assert rows["canvas, one call"]["calls"] == 1 and 20 < rows["canvas, surest first"]["calls"] < 30 and rows["GPT, 1 layers, row by row"]["calls"] == 36
    assert {row["K"] for row in figures["test_refinements"]} == {1, 2} and {row["model"] for row in figures["ablation"]} == {"full recipe", "no injection", "no deep supervision", "separate weights", "plain loop"}
    steps = {row["model"]: row["updates"] for row in figures["trained"]}
    assert steps["K = 1, equal operations"] > steps["K = 1, equal updates"] == 2 and "K = 3, equal updates" not in steps
    assert len(figures["example"]["canvas"]) == len(figures["example"]["GPT"]) == 36


def test_nine_digits(report):
    _, figures = report("nine_digits")
    rows = {row["model"]: row for row in figures["results"]}
    assert set(rows) == {f"canvas, {rule}" for rule in ("one call", "surest first", "entropy bound 0.1", "everything again")} | {"GPT, row by row", "GPT, solver's order"}
    assert all(len(row["by seed"]) == (2 if model.startswith("canvas") else 1) for model, row in rows.items())
    classes = {row["clues"]: row["puzzles"] for row in figures["grades"]}
    assert sum(classes.values()) <= 8 and all(0 <= row["value"] <= 1 for row in figures["grades"])
    assert [(row["model"], row["lessons"]) for row in figures["lessons"]] == [("GPT, row by row", 1), ("GPT, row by row", 2), ("GPT, solver's order", 1), ("GPT, solver's order", 2)]
    assert all(abs(row["updates"] - figures["lessons"][i & 2]["updates"] * row["lessons"]) <= 1 for i, row in enumerate(figures["lessons"]))


def test_depth(report):
    _, figures = report("depth")
    rows = {(row["world"], row["model"], row["depth"]): row for row in figures["results"]}
    assert {world for world, *_ in rows} == {"puzzles", "tales", "stories"} and {depth for _, model, depth in rows if model == "plain loop"} == {1, 2, 3, 6, 12, 24}
    assert {depth for _, model, depth in rows if model.startswith("two")} == {3, 6, 12, 24}
    assert all(0 <= row["value"] <= 1 for (world, *_), row in rows.items() if world == "puzzles") and all(row["value"] > 0 for row in rows.values())
    assert {(row["world"], row["rule"]) for row in figures["halting"]} == {(world, rule) for world in ("puzzles", "tales", "stories") for rule in ("the tokens rest", "sure", "head")}
    for row in figures["halting"]: assert row["lost at the fixed depth"] == row["fixed"][row["fixed depth"] - 1] and row["saved"] == pytest.approx(1 - row["depth"] / row["fixed depth"])


def test_instructions(report):
    _, figures = report("instructions")
    ways = {"untuned", "new words, untuned", "tuned", "new words, tuned", "requests only"}
    assert {(row["model"], row["way"]) for row in figures["results"]} == {(who, way) for who in ("canvas", "GPT") for way in ways} | {("the grammar", "any tale")}
    assert all(row["a tale"] >= row["value"] for row in figures["results"])  # what is no tale obeys nobody
    assert all(row["against before"] == 0 for row in figures["forgotten"] if row["way"] == "before")
    steps = {(row["model"], row["way"]): row["updates"] for row in figures["settings"]["steps"]}
    assert steps["canvas", "tales"] == 6 and steps["canvas", "tuned"] == 3 and steps["GPT", "requests only"] > steps["GPT", "tuned"]


def test_infilling(report):
    _, figures = report("infilling")
    kinds = {"a sentence", "every second sentence", "half of the words", "all but the ending", "all but one word", "everything, length given"}
    assert {row["gap"] for row in figures["nats"] if row["world"] == "tales"} == kinds and {row["gap"] for row in figures["stories"]} == {"the middle", "half of the tokens"}
    truth = {row["gap"]: row for row in figures["written"] if row["way"] == "the truth, entropy bound"}
    assert set(truth) == kinds and truth["a sentence"]["value"] >= 0.5  # what a perfect model fills in is right but for the bound
    calls = {row["way"]: row["calls"] for row in figures["written"] if row["gap"] == "a sentence"}
    assert calls["canvas, one a call"] == calls["GPT, fills gaps"] == calls["GPT, fills gaps, 2 times the operations"] == calls["GPT, left side"] > 3 and calls["GPT, left side, best of 2 drafts"] == 2 * calls["GPT, left side"]
    assert next(row for row in figures["editing"] if row["model"] == "the truth")["AUROC"] > 0.9
    floor = {row["gap"]: row["value"] for row in figures["nats"] if row["model"] == "the truth"}
    assert floor["everything, length given"] > floor["all but the ending"] > floor["a sentence"] > 0
    mean = {(row["gap"], row["model"]): row["value"] for row in figures["nats"]}
    for row in figures["differences"]: assert row["value"] == pytest.approx(mean[row["gap"], "canvas"] - mean[row["gap"], row["rival"]], abs=1e-6)


def test_samplers(report):
    _, figures = report("samplers")
    assert {row["budget"] for row in figures["remasking"]} == {6, 30} and {row["judge"] for row in figures["remasking"]} >= {"—", "head, Prism", "probability, as shipped", "hidden"}
    perfect = {row["rule"]: row for row in figures["replayed"] if row["model"] == "perfect"}
    assert abs(perfect["one a call, surest first"]["value"]) < 1e-6 and perfect["one a call, surest first"]["calls"] == 72
    plan = [row for row in figures["replayed"] if row["rule"] == "planner" and row["model"] == "perfect"]
    assert abs(plan[0]["value"]) < 1e-6 and plan[0]["calls"] < 10
    assert [row["tokens a call"] for row in figures["speculation"]][-1] == 1.0 and all(row["first text the same"] for row in figures["clocks"])
