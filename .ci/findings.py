"""What each evaluation found, in a few sentences whose every figure is read from its report: the front page and the reports open with them."""
from collections import Counter
from statistics import mean

from book import NBS, report, title
from tables import find, table


def _row(name: str, table: str, **fields) -> dict:
    "The one row of a report's table with these fields; ValueError where there is none, or more than one."
    return find(name, (table, {key.replace("_", " "): value for key, value in fields.items()}))


def _interval(row: dict, value: str, low: str = "low", high: str = "high", form: str = "{:.2f}") -> str:
    "A figure with its 95% interval, a minus sign for a hyphen."
    return f"{form} [{form}, {form}]".format(row[value], row[low], row[high]).replace("-", "−")


def _seeds(name: str) -> int:
    "How many seeds a report was made with."
    return len(find(name, ("settings", "seeds")))


def quickstart() -> str:
    r = report("quickstart")
    right = lambda way: f"{r['samplers'][way]['right']:.1%}"
    return (f"**Minutes are enough to learn tales, and the sampler decides what is made of it.** {r['parameters']:,} parameters, {r['updates']:,} updates, one seed: the bound is {r['gap_to_truth']:.2f} ± {1.96 * r['gap_standard_error']:.2f} nats above the truth "
            f"of {r['entropy']:.2f} nats a tale. One token a call, the surest first, {right('surest first, temperature 0.7')} of the tales are right; in random order {right('random order, one a call')}; in 20 calls {right('surest first, 20 calls')}; "
            f"with re-masking at the source text's thresholds {right('re-masking, thresholds 0.7 and 0.3')}.")


def lira_vs_gpt() -> str:
    bits = lambda corpus, model, measure: f"{_row('lira_vs_gpt', 'results', corpus=corpus, model=model, measure=measure)['bits per byte']:.2f}"
    pair = lambda corpus: f"{bits(corpus, 'GPT, equal operations', 'exact')} against at most {bits(corpus, 'LIRA', 'NELBO')}"
    truth = lambda who: f"{find('lira_vs_gpt', ('above_the_truth', who, 'value')):.2f}"
    chosen = [row["muon_lr"] for row in find("lira_vs_gpt", ("chosen",))]
    highest = max(row["options"]["muon_lr"] for row in find("lira_vs_gpt", ("tuning",)))
    edge = "Each model's learning rate is the highest of its grid, so neither is tuned to its best." if min(chosen) == highest else f"{chosen.count(highest)} of the {len(chosen)} chosen learning rates are the highest of the grid."
    return (f"**At equal operations a GPT reads all three texts better.** Bits per byte: {pair('tinyshakespeare')} on Tiny Shakespeare, {pair('tinystories')} on TinyStories; on tales {truth('GPT, equal operations: exact')} against {truth('LIRA: NELBO')} nats above the truth "
            f"({_seeds('lira_vs_gpt')} seeds, models of width {find('lira_vs_gpt', ('settings', 'hidden_size'))}). {edge}")


def refinement_steps() -> str:
    at = lambda model: _interval(_row("refinement_steps", "results", model=model), "above the truth")
    cost = lambda model: _row("refinement_steps", "results", model=model)["teraflop"]
    return (f"**On tales, refining more did not pay.** At equal operations, nats above the truth: one application of the block {at('K = 1, equal operations')}, two {at('K = 2, equal operations')}, eight {at('K = 8, equal operations')}. "
            f"At equal updates, of which those with eight cost {cost('K = 8, equal data') / cost('K = 1, equal data'):.1f} times as much as those with one: one {at('K = 1, equal data')}, two {at('K = 2, equal data')}, four {at('K = 4, equal data')}, eight {at('K = 8, equal data')} ({_seeds('refinement_steps')} seeds, one block of {find('refinement_steps', ('settings', 'num_layers'))} layers).")


def curriculum() -> str:
    against = lambda name: _interval(_row("curriculum", "results", curriculum=name), "against the last stage alone", "difference low", "difference high")
    return (f"**It is the shares that help, not the stages.** Against the last stage alone at equal operations, four equal quarters change {against('four stages, quarters')} nats a tale, four stages with most of the data in the third {against('four stages, mostly the third')} "
            f"({_seeds('curriculum')} seeds, {find('curriculum', ('settings', 'updates'))} updates).")


def epochs() -> str:
    runs = report("epochs")["runs"]
    held = Counter()
    best = {}
    for model in ("GPT, dropout", "GPT", "LIRA"):
        by_length = {n: mean(run["best on the way"] for run in runs if (run["model"], run["epochs"]) == (model, n)) for n in {run["epochs"] for run in runs}}
        best[model] = min(by_length.values())
        held[model] = min(by_length, key=by_length.get)
    against = lambda n: _interval(_row("epochs", "results", epochs=n, model="LIRA"), "against GPT, dropout", "difference low", "difference high")
    longest, shortest = max(run["epochs"] for run in runs), min(run["epochs"] for run in runs)
    return (f"**On little text, a GPT that is stopped in time is as good as a masked model, or better.** Lowest validation, nats a character: GPT with dropout {best['GPT, dropout']:.3f} (runs of {held['GPT, dropout']} epochs), GPT {best['GPT']:.3f}, LIRA at most {best['LIRA']:.3f} (runs of {held['LIRA']} epochs). "
            f"By the last weights LIRA is behind after {shortest} epochs, {against(shortest)} bits per byte, and ahead after {longest}, {against(longest)}: a comparison with a GPT that nobody stopped ({_seeds('epochs')} seeds, {find('epochs', ('settings', 'train_canvases'))} pages of Tiny Shakespeare).")


def gate() -> str:
    right = lambda model, way: f"{_row('gate', 'results', model=model, way=way)['right']:.1%}"
    seeds = " and ".join(f"{row['right']:.0%}" for row in report("gate")["written"] if (row["model"], row["way"]) == ("mixture", "own policy"))
    own = _row("gate", "results", model="mixture", way="own policy")
    nats = {row["model"]: row["nats a molecule"] for row in report("gate")["molecule_likelihood"]}
    return (f"**The repaired gate wins by its own policy and loses by another.** Short tales that are right: by its own policy {right('mixture', 'own policy')} [{own['low']:.1%}, {own['high']:.1%}] with the gate in the likelihood (seeds: {seeds}) and {right('as described', 'own policy')} as described; "
            f"by keep-the-best, in as many calls, {right('mixture', 'keep the best')} repaired and {right('as described', 'keep the best')} as described. "
            f"Molecules, nats at equal operations: GPT {nats['GPT']:.1f}, LIRA at most {nats['LIRA']:.1f}, Imadarem at most {nats['Imadarem, gate']:.1f} ({_seeds('gate')} seeds).")


def chunk_trm() -> str:
    nats = lambda model: _interval(_row("chunk_trm", "results", group="main", model=model), "nats per character", form="{:.3f}")
    trm = _row("chunk_trm", "results", group="main", model="TRM")
    worth = lambda what: f"{find('chunk_trm', ('worth', what, 'value')):.3f}"
    return (f"**A perplexity of 1.01 was the answer, read from the input.** Without the leak, nats a character of Tiny Shakespeare at equal operations: baseline {nats('baseline')}, one pass {nats('one pass')}, chunk-TRM {nats('TRM')} ({trm['parameters']:,} parameters, {trm['seeds']} seeds). "
            f"In small models with chunks of 2, refining costs {worth('learned positions: refinement (TRM against one pass), equal operations')} nats a character against one pass, and deep supervision {worth('learned positions: deep supervision against one step, equal operations')} against one step.")


def claims() -> str:
    verdicts = Counter(row["verdict"] for row in report("claims")["claims"])
    told = ", ".join(f"{n} {verdict.replace('holds', 'holding')}" for verdict, n in verdicts.most_common())
    perplexity = find("claims", ("perplexity",))
    return (f"**Of {verdicts.total()} headline claims none holds as published.** Verdicts: {told}. The largest single error is what was called perplexity: {perplexity['LIRA, 30% masked']:.2f} with 30% of a text hidden, where the same model's bound says at most {perplexity['LIRA, at most (NELBO)']:.2f}."
            if not verdicts["holds"] else f"**Of {verdicts.total()} headline claims {verdicts['holds']} hold.** Verdicts: {told}.")


def lira_options() -> str:
    runs = report("lira_options")["runs"]
    change = {variant: mean(run["against_plain"] for run in runs if run["variant"] == variant) for variant in dict.fromkeys(run["variant"] for run in runs) if variant not in ("plain", "source")}
    best, worst = min(change, key=change.get), max(change, key=change.get)
    second = sorted(change, key=change.get)[1]
    show = lambda variant: f"`{variant}` {change[variant]:+.2f}".replace("-", "−")
    return (f"**One option matters.** Nats a tale against the plain block, mean of {len({run['seed'] for run in runs})} seeds: {show(best)}, next {show(second)}, worst {show(worst)}; all others lie between. Every variant had {runs[0]['steps']} updates at the plain model's learning rate.")


def samplers() -> str:
    r = report("samplers")
    share = lambda row: _interval(row, "value", form="{:.0%}")
    of = lambda rule, gamma=None: next(row for row in r["frontier"] if row["rule"] == rule and (gamma is None or row["policy"] == f"EntropyBound(gamma={gamma})"))
    bold = lambda judge, budget: share(_row("samplers", "remasking", rule="guided, bold", judge=judge, budget=budget))
    one, bound = of("one a call, surest first"), of("entropy bound", 0.1)
    floor = _row("samplers", "replayed", rule="planner", model="perfect", policy="at most 0.0 nats of mutual information")
    budgets = find("samplers", ("settings", "budgets"))
    own = ", ".join(f"{bold('probability, as shipped', n)} in {n} calls" for n in budgets)
    published = ", ".join(bold("head, as shipped", n) for n in budgets)
    cautious = _row("samplers", "replayed", rule="entropy bound", model="perfect", policy="EntropyBound(gamma=0.1)")
    return (f"**Taking back pays once the right judge is asked, and a third of the calls nearly suffices.** The package's canvas writes {share(one)} right tales one token a call, the surest first, in {one['calls']:.0f} calls, and {share(bound)} under an entropy bound of 0.1 nats in {bound['calls']:.0f}. "
            f"Written boldly and taken back where the model's own probability of a token is low: {own}; by its published head: {published}. "
            f"A planner that knows the grammar loses nothing in {floor['calls']:.1f} calls on a perfect model, which under that bound takes {cautious['calls']:.0f} ({_seeds('samplers')} seeds, {find('samplers', ('settings', 'judged_tales'))} tales each).")


def puzzles() -> str:
    share = lambda row: _interval(row, "value", form="{:.1%}")
    of = lambda model: _row("puzzles", "results", model=model)
    again = lambda rule, K: _row("puzzles", "test_refinements", rule=rule, K=K)
    K = find("puzzles", ("settings", "num_refine_steps"))
    rows, ordered = (max((row for row in report("puzzles")["results"] if row["model"].endswith(end)), key=lambda row: row["value"]) for end in ("row by row", "solver's order"))
    return (f"**On puzzles the canvas wins.** Of unseen minimal sudokus of six digits a canvas solves {share(of('canvas, surest first'))} writing the surest cell a call and {share(of('canvas, one call'))} in a single call of {K} refinements, {share(again('one call', 2 * K))} in one of {2 * K}, on {find('puzzles', ('settings', 'studied'))} of them. "
            f"At equal operations the best GPT that reads the clues and writes row by row solves {share(rows)}, and one that is taught the solver's order {share(ordered)}. "
            f"({_seeds('puzzles')} seeds, {find('puzzles', ('settings', 'tested'))} puzzles.)")


def nine_digits() -> str:
    share = lambda row: _interval(row, "value", form="{:.1%}")
    of = lambda model: _row("nine_digits", "results", model=model)
    again = lambda rule, times: _row("nine_digits", "test_refinements", rule=rule, K=times * find("nine_digits", ("settings", "num_refine_steps")))
    fewest = next(row for row in report("nine_digits")["grades"] if row["model"] == "canvas, surest first")
    best = max((of(f"GPT, {order}") for order in ("row by row", "solver's order")), key=lambda row: row["value"])
    by_row, by_solver = ([row for row in report("nine_digits")["lessons"] if row["model"] == f"GPT, {order}"] for order in ("row by row", "solver's order"))
    told = lambda rows: ", ".join(f"{share(row)} with {'the operations of a canvas' if row['lessons'] == 1 else str(row['lessons']) + ' times as many'}" for row in rows)
    head = "The win on puzzles holds on nine digits, and against GPTs taught for longer" if of("canvas, surest first")["low"] > best["high"] and max(by_row[-1]["high"], by_solver[-1]["high"]) < _row("puzzles", "results", model="canvas, surest first")["low"] else "On nine digits, or against longer lessons, the win on puzzles does not hold throughout"
    return (f"**{head}.** Of unseen sudokus of nine digits a canvas solves {share(of('canvas, surest first'))} writing the surest cell a call, {share(of('canvas, entropy bound 0.1'))} in {of('canvas, entropy bound 0.1')['calls']:.1f} calls and {share(of('canvas, one call'))} in one; of those with {fewest['clues']} clues {share(fewest)}. The best GPT at equal operations solves {share(best)}. "
            f"With twice the refinements of training one call solves {share(again('one call', 2))} and the surest first {share(again('surest first', 2))}; with four times {share(again('one call', 4))} and {share(again('surest first', 4))}. "
            f"On minimal puzzles of six digits a GPT that writes row by row solves {told(by_row)}, one that is taught the solver's order {told(by_solver)} ({_seeds('nine_digits')} seeds of the canvas, {find('nine_digits', ('settings', 'tested'))} puzzles).")


def infilling() -> str:
    first = find("infilling", ("settings", "temperatures"))[0]
    row = lambda kind, way: _row("infilling", "written", gap=kind, way=way, temperature=first)
    right = lambda kind, way: _interval(row(kind, way), "value", form="{:.0%}")
    drafts = next(row["way"] for row in report("infilling")["written"] if "drafts" in row["way"])
    longer = f"GPT, fills gaps, {find('infilling', ('settings', 'longer'))} times the operations"
    ways = ("canvas, one a call", "GPT, left side", drafts, "GPT, fills gaps", longer)
    told = lambda kind: ", ".join(right(kind, way) for way in ways)
    nats = [_row("infilling", "nats", world="tales", gap=kind, model=model) for kind in _gaps() for model in ("canvas", "GPT, left side")]
    nearer = sum(canvas["value"] < left["value"] for canvas, left in zip(nats[::2], nats[1::2]))
    apart = [_row("infilling", "differences", world="tales", gap=kind, rival=longer) for kind in _gaps()]
    ahead, behind = sum(row["high"] < 0 for row in apart), sum(row["low"] > 0 for row in apart)
    stories = lambda model: f"{_row('infilling', 'nats', world='stories', gap='the middle', model=model)['value']:.2f}"
    auroc = lambda model: f"{_row('infilling', 'editing', model=model)['AUROC']:.3f}"
    head = "Where both sides are known, a canvas fills a gap best; where nearly all is missing, it does not" if row("a sentence", ways[0])["low"] > row("a sentence", ways[1])["high"] and nearer < len(_gaps()) else f"A canvas is the nearest to the truth in {nearer} of {len(_gaps())} kinds of gap"
    late = " (at equal operations it has hardly learned to)" if max(row(kind, ways[3])["high"] for kind in _gaps()) < 0.5 else ""
    return (f"**{head}.** Tales filled right at equal operations, canvas, GPT with the left side, its best of {find('infilling', ('settings', 'drafts'))} drafts, a GPT that is taught to fill{late}, and the same with {find('infilling', ('settings', 'longer'))} times the operations: a missing sentence {told('a sentence')}; half of the words {told('half of the words')}; everything, of a given length {told('everything, length given')}. "
            f"In nats the canvas is nearer the truth than the left side for {nearer} of {len(_gaps())} kinds of gap, and than the GPT that was taught for longer, beyond doubt, for {ahead}; the other way around for {behind}. In the middle of stories a token costs the canvas {stories('canvas')} nats, the left side {stories('GPT, left side')}, the GPT that fills {stories('GPT, fills gaps')}, after longer lessons {stories(longer)}. "
            f"A wrong word is told from the others with an AUROC of {auroc('canvas')}, {auroc('GPT, left side')} and {auroc(longer)}, by the truth {auroc('the truth')} ({_seeds('infilling')} seeds, {find('infilling', ('settings', 'tested'))} tales).")


def _loop(world: str, model: str, depth: int | None = None) -> dict:
    "The row of report depth for a loop, read at the depth of training unless told otherwise."
    K = find("depth", ("settings", "num_refine_steps"))
    return _row("depth", "results", world=world, model=model, depth=K if depth is None else depth)


def _saved(world: str, rule: str) -> list[float]:
    "The share of applications that a rule saves, by seed."
    return [row["saved"] for row in report("depth")["halting"] if (row["world"], row["rule"]) == (world, rule)]


def _shares(values: list[float]) -> str:
    "Shares by seed, in words."
    told = [f"{value:.0%}".replace("-", "−") for value in values]
    return ", ".join(told[:-1]) + f" and {told[-1]}"


def depth() -> str:
    K = find("depth", ("settings", "num_refine_steps"))
    unsolved = lambda model, depth=None: _interval(_loop("puzzles", model, depth), "value", form="{:.1%}")
    against = lambda world, model: _interval(_loop(world, model), "against the plain loop", "difference low", "difference high")
    two = ("two latents", "two latents, last round")
    worse = all(_loop("puzzles", model)["difference low"] > 0 for model in two)
    saves = min(_saved("puzzles", "sure")) > 0
    missed = max(0.0, *(row["lost"] - row["lost at the fixed depth"] for row in report("depth")["halting"] if (row["world"], row["rule"]) == ("puzzles", "sure")))
    head = "Two latents don't beat one loop where depth matters, and stopping in time pays there" if worse and saves else "What depth is worth depends on the world"
    return (f"**{head}.** Puzzles that are not solved in one call of {K} applications, at equal operations: plain loop {unsolved('plain loop')}, random K {unsolved('random K')}, two latents {unsolved(two[0])}, with the last round's gradient {unsolved(two[1])}. "
            f"Against the plain loop the last changes {against('tales', two[1])} nats a tale and {against('stories', two[1])} nats a token of stories. With twice the applications of training the plain loop leaves {unsolved('plain loop', 2 * K)}, with four times {unsolved('plain loop', 4 * K)}. "
            f"Stopping when the model is sure of a whole puzzle saves {_shares(_saved('puzzles', 'sure'))} of the applications, by seed, against the fixed depth that solves as many, with at most {missed:.1%} of the puzzles fewer; on tales and stories no model is ever sure of a whole text with much hidden ({_seeds('depth')} seeds).")


def instructions() -> str:
    first = find("instructions", ("settings", "temperatures"))[0]
    row = lambda who, way: _row("instructions", "results", model=who, way=way, temperature=first)
    share = lambda who, way: _interval(row(who, way), "value", form="{:.0%}")
    change = lambda who: _interval(_row("instructions", "forgotten", model=who, way="tuned"), "against before", "difference low", "difference high")
    told = lambda who: f"{share(who, 'untuned')} untuned, {share(who, 'new words, untuned')} untuned where the words of a request mean nothing yet, {share(who, 'tuned')} tuned, {share(who, 'requests only')} trained on requests alone"
    alone = all(row(who, "requests only")["low"] > row(who, "tuned")["high"] for who in ("canvas", "GPT"))
    canvas, gpt = row("canvas", "requests only"), row("GPT", "requests only")
    apart = canvas["low"] > gpt["high"] or gpt["low"] > canvas["high"]
    head = ("Trained on requests from the start, both models obey more than after two stages" if alone else "A second stage on requests is as good as requests from the start, or can't be told from it") + (f", and the {'canvas' if canvas['low'] > gpt['high'] else 'GPT'} obeys more" if apart else "; which of the two obeys more is not decided")
    return (f"**{head}.** Requests for unseen combinations that are obeyed at equal operations, at temperature {first:g}: canvas {told('canvas')}; GPT {told('GPT')}; any tale at all {share('the grammar', 'any tale')}. "
            f"Tuning changes tales of which nothing is asked by {change('canvas')} nats for the canvas and {change('GPT')} for the GPT ({_seeds('instructions')} seeds, {find('instructions', ('settings', 'asked'))} requests).")


def _gaps() -> list[str]:
    "The kinds of gap in tales."
    return list(dict.fromkeys(row["gap"] for row in report("infilling")["written"]))


def speed() -> str:
    r = report("speed")
    demo = [step for step in r["steps"] if step["model"] == "demo"]
    shares = ", ".join(f"{step['share_of_ceiling']:.0%} {'compiled' if step['compiled'] else 'as it is'}" for step in demo)
    large = max((step for step in r["steps"] if step["model"] == "12M"), key=lambda step: step["share_of_ceiling"])
    faster = ", ".join(f"{row['loop'].split(',')[0]} {row['times_faster']:.1f} times" for row in r["shortcuts"])
    step, token = (row["ours_over_theirs"] for row in r["beside_gpt2"]["times"])
    return (f"**A training step of the quickstart uses {shares} of what the machine's matrix product reaches in {r['precision']}.** The model of 12 million parameters reaches {large['share_of_ceiling']:.0%} ({r['device']}, {r['threads']} threads). "
            f"At a vocabulary of thousands, sampling is faster than it was, with the same tokens: {faster}. Against transformers' GPT-2 of the same shape our GPT takes {step:.2f} times as long for a training step and {token:.2f} times as long for a token with a cache.")


FINDINGS = {made.__name__: made for made in (quickstart, lira_vs_gpt, refinement_steps, curriculum, epochs, gate, chunk_trm, claims, samplers, puzzles, nine_digits, depth, infilling, instructions, lira_options, speed)}
FIGURES = dict(quickstart="fig-quickstart-learning", lira_vs_gpt="fig-lira-vs-gpt", refinement_steps="fig-k-curve", curriculum="fig-curriculum", epochs="fig-epochs",
               gate="fig-gate-equal-calls", chunk_trm="fig-main", claims="fig-claims-reliability", samplers="fig-samplers", puzzles="fig-puzzles", nine_digits="fig-nine-digits", depth="fig-depth-loops", infilling="fig-infilling", instructions="fig-instructions", lira_options="fig-lira-options", speed="fig-speed")
SIX = ("puzzles", "samplers", "lira_vs_gpt", "refinement_steps", "gate", "chunk_trm")


def verdict(name: str) -> str:
    "How a report opens: what it found, and the figure that shows it."
    return f"<!-- figure: {FIGURES[name]} -->\n\n{FINDINGS[name]()} @{FIGURES[name]} shows it."


def good_for() -> str:
    "What refinement was asked to be good for, what was measured, and what the intervals say."
    K = find("puzzles", ("settings", "num_refine_steps"))
    solved = lambda model: _row("puzzles", "results", model=model)
    gpt = max((row for row in report("puzzles")["results"] if row["model"].startswith("GPT")), key=lambda row: row["value"])
    nine = lambda model: _row("nine_digits", "results", model=model)
    best_nine = max((row for row in report("nine_digits")["results"] if row["model"].startswith("GPT")), key=lambda row: row["value"])
    again = _row("puzzles", "test_refinements", rule="one call", K=2 * K)
    share = lambda row: _interval(row, "value", form="{:.1%}")
    yes = lambda holds: "yes" if holds else "not shown"
    k = {n: _row("refinement_steps", "results", model=f"K = {n}, equal operations") for n in (1, 8)}
    times = find("infilling", ("settings", "longer"))
    longer = f"GPT, fills gaps, {times} times the operations"
    filled = {kind: [_row("infilling", "written", gap=kind, way=way, temperature=1.0) for way in ("canvas, one a call", "GPT, left side", longer)] for kind in _gaps()}
    better = [kind for kind, (canvas, *others) in filled.items() if canvas["low"] > max(other["high"] for other in others)]
    found = {model: _row("infilling", "editing", model=model) for model in ("canvas", longer, "GPT, left side")}
    bits = lambda corpus, model, measure: _row("lira_vs_gpt", "results", corpus=corpus, model=model, measure=measure)
    reading = [(corpus, bits(corpus, "LIRA", "NELBO"), bits(corpus, "GPT, equal operations", "exact")) for corpus in ("tinyshakespeare", "tinystories", "tales")]
    obeys = {(row["model"], row["way"]): row for row in report("instructions")["results"] if row["temperature"] == 1.0}
    rows = [
        ("finding an order that is not left to right", f"sudokus of six digits solved at equal operations: canvas {share(solved('canvas, surest first'))}, best GPT {share(gpt)}", yes(solved("canvas, surest first")["low"] > gpt["high"]), "puzzles"),
        ("the same on nine digits", f"solved at equal operations: canvas {share(nine('canvas, surest first'))}, best GPT {share(best_nine)}", yes(nine("canvas, surest first")["low"] > best_nine["high"]), "nine_digits"),
        ("thinking longer in one call", f"sudokus solved in one call: {share(solved('canvas, one call'))} with the {K} refinements of training, {share(again)} with {2 * K}", yes(again["low"] > solved("canvas, one call")["high"]), "puzzles"),
        ("thinking only as long as needed", f"applications saved at equal quality, by seed: puzzles {_shares(_saved('puzzles', 'sure'))} when the model is sure; tales {_shares(_saved('tales', 'the tokens rest'))} and stories {_shares(_saved('stories', 'the tokens rest'))} when the tokens rest", "in part" if min(_saved("puzzles", "sure")) > 0 >= min(_saved("stories", "the tokens rest")) else yes(min(_saved("puzzles", "sure")) > 0), "depth"),
        ("two latents, a fast one and a slow one", "against one loop at equal operations: " + "; ".join(f"{world} {_interval(_loop(world, 'two latents, last round'), 'against the plain loop', 'difference low', 'difference high')} {unit}" for world, unit in (("puzzles", "of the puzzles unsolved"), ("tales", "nats a tale"), ("stories", "nats a token"))), "no" if _loop("puzzles", "two latents, last round")["difference low"] > 0 else "not shown", "depth"),
        ("depth in place of parameters, on text", f"tales, nats above the truth at equal operations: one refinement {_interval(k[1], 'above the truth')}, eight {_interval(k[8], 'above the truth')}", yes(k[8]["high"] < k[1]["low"]) if k[8]["low"] <= k[1]["high"] else "no", "refinement_steps"),
        ("filling gaps in tales", f"filled right, canvas against a GPT with the left side, and one taught to fill gaps with {times} times the operations: " + "; ".join(f"{kind} {', '.join(_interval(row, 'value', form='{:.0%}') for row in each)}" for kind, each in filled.items()), "in part" if 0 < len(better) < len(filled) else yes(bool(better)), "infilling"),
        ("filling gaps in stories", "nats a token of the middle: " + ", ".join(f"{model} {_interval(_row('infilling', 'nats', world='stories', gap='the middle', model=model), 'value')}" for model in ("canvas", "GPT, left side", "GPT, fills gaps", longer)), "no" if _row("infilling", "nats", world="stories", gap="the middle", model="canvas")["low"] > _row("infilling", "nats", world="stories", gap="the middle", model="GPT, left side")["high"] else "not shown", "infilling"),
        ("finding a wrong word", "told from the others, AUROC: " + ", ".join(f"{model} {row['AUROC']:.3f}" for model, row in found.items()) + "; the tale right after its repair: " + ", ".join(f"{model} {_interval(row, 'value', form='{:.0%}')}" for model, row in found.items()), yes(found["canvas"]["low"] > max(found["GPT, left side"]["high"], found[longer]["high"])), "infilling"),
        ("doing what is asked", "requests obeyed at temperature 1: " + "; ".join(f"{way} " + ", ".join(f"{who} {_interval(obeys[who, way], 'value', form='{:.0%}')}" for who in ("canvas", "GPT")) for way in ("tuned", "requests only")), "no" if any(obeys["canvas", way]["high"] < obeys["GPT", way]["low"] for way in ("tuned", "requests only")) else yes(obeys["canvas", "requests only"]["low"] > obeys["GPT", "requests only"]["high"]), "instructions"),
        ("reading text from left to right", "bits per byte at equal operations: " + ", ".join(f"{corpus} at most {lira['bits per byte']:.2f} against {rival['bits per byte']:.2f}" for corpus, lira, rival in reading), "no" if all(lira["low"] > rival["high"] for _, lira, rival in reading) else "in part", "lira_vs_gpt"),
    ]
    return table(["asked", "measured", "verdict", "report"], [[asked, measured, f"**{word}**", f"[{title(NBS / 'evals' / f'{name}.ipynb').partition(':')[0]}](evals/{name}.ipynb)"] for asked, measured, word, name in rows])


def six() -> str:
    "Six findings, each with a link to its report."
    return "\n".join(f"{n}. {FINDINGS[name]()} [Report](evals/{name}.ipynb)." for n, name in enumerate(SIX, 1))
