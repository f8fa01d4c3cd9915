"""Compare reports made here with the kept ones, within the tolerances of RULES; exit with 1 on any
difference.

The report made here is reports/NAME/report.json, the kept one nbs/evals/results/NAME.json. What is
counted must be the same, times are not compared. What a trained model did may differ about as much
as two seeds of the kept reports do: other hardware adds up in another order, and training carries
that on."""
import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from math import isclose, sqrt
from typing import NamedTuple

from book import RESULTS, ROOT
from tables import table

NAMING = (  # the fields that name a row of a list, in the order in which they are shown
    "group", "corpus", "world", "gap", "source", "claim", "curriculum", "variant", "model", "writer", "sampler",
    "rule", "judge", "budget", "position", "way", "loop", "what", "measure", "against", "LIRA by", "epochs", "seed",
)
MISSING = "–"


class Rule(NamedTuple):
    "What two values may differ by."
    said: str  # what the table of differences calls it
    agree: Callable[[float, float], bool]  # asked of two numbers that are not equal
    skip: bool = False  # do not compare at all, nor miss what one side lacks


def relative(share: float) -> Rule:
    "A number may differ by a share of the kept one."
    return Rule(f"{share:g} of it", lambda kept, new: abs(new - kept) <= share * abs(kept))


def within(most: float) -> Rule:
    "A number may differ by so much, in its own unit."
    return Rule(f"± {most:g}", lambda kept, new: abs(new - kept) <= most)


def share_of(texts: int) -> Rule:
    "A share of so many texts may differ by three standard errors of a difference at one half."
    return within(round(3 * sqrt(0.5 / texts), 3))


SAME = Rule("the same", lambda kept, new: isclose(kept, new, rel_tol=1e-9))
IGNORED = Rule("anything", lambda kept, new: True, skip=True)
OTHERWISE = relative(0.05)

# The first pattern that fits a value's path decides. A rule is for numbers with a fraction: whole
# numbers, words and nulls must be the same unless they are ignored.
RULES: tuple[tuple[str, Rule], ...] = (
    # When, where and how fast it was made: another machine, another value
    ("*/made/*", IGNORED),
    ("*/device", IGNORED),
    ("*/precision", IGNORED),
    ("*/threads", IGNORED),
    ("quickstart/torch", IGNORED),
    ("speed/torch", IGNORED),
    ("*seconds*", IGNORED),
    ("*_per_second", IGNORED),
    ("*/ms_per_step", IGNORED),
    ("chunk_trm/speed/*", IGNORED),
    ("speed/ceiling_gigaflops/*", IGNORED),
    ("speed/*/share_of_ceiling", IGNORED),
    ("speed/shortcuts/*/times_faster", IGNORED),
    ("speed/beside_gpt2/*/ours_over_theirs", IGNORED),
    ("speed/encoding/*", IGNORED),
    ("speed/memory/*", IGNORED),
    ("speed/peak_megabytes", IGNORED),
    # Sentences and tables made of figures that are compared themselves
    ("claims/claims/*/reproduced", IGNORED),
    ("claims/claims/*/fair", IGNORED),
    ("gate/summary", IGNORED),
    # Tallies of a few texts, and the winners of a grid whose best are near equal
    ("quickstart/reasons/*", IGNORED),
    ("gate/*/stops/*", IGNORED),
    ("gate/*/calls_of_texts/*", IGNORED),
    ("gate/best_threshold/*/threshold", IGNORED),
    ("depth/halting/*/threshold", IGNORED),
    ("gate/best_threshold/*/calls", IGNORED),
    ("gate/best_threshold/*/passes", IGNORED),
    # Settings, operations and what is known of a corpus are counted or computed, not trained
    ("*/settings/*", SAME),
    ("*/muon_lr", SAME),
    ("*/temperature", SAME),
    ("*/threshold", SAME),
    ("*flop*", SAME),
    ("*/written/*/entropy", within(0.3)),  # of written texts, by counting
    ("*/repetition/*/entropy", within(0.3)),
    ("*/entropy", SAME),
    ("*/entropy_of_tales", SAME),
    ("*/curve/*/0", SAME),
    # Learning curves fall steeply: two seeds are up to a quarter apart on the way
    ("*/curve/*", relative(0.3)),
    # Nats a tale: a model of the quickstart is known to ± 0.4, seeds are up to 0.5 apart elsewhere,
    # and further where little was learned
    ("quickstart/nelbo", within(0.6)),
    ("quickstart/gap_to_truth", within(0.6)),
    ("quickstart/confidence_*", within(0.1)),
    ("lira_options/*standard_error", relative(0.3)),
    ("lira_options/*", within(3.5)),
    ("refinement_steps/results/K = 8, equal operations/*", within(1.5)),
    ("refinement_steps/*", within(0.6)),
    ("curriculum/results/*/right tales", share_of(128)),
    ("curriculum/results/*/ECE at masked", within(0.1)),
    ("curriculum/*", within(0.6)),
    ("lira_vs_gpt/above_the_truth/*", within(1.0)),
    # Bits a byte: seeds up to 0.015 apart on tales, 0.065 on text
    ("lira_vs_gpt/results/tales*/nats per canvas", within(2.5)),
    ("lira_vs_gpt/results/*/nats per canvas", relative(0.05)),
    ("lira_vs_gpt/results/tales*", within(0.02)),
    ("lira_vs_gpt/results/*", within(0.1)),
    ("lira_vs_gpt/differences/tales*", within(0.02)),
    ("lira_vs_gpt/differences/*", within(0.1)),
    ("lira_vs_gpt/tuning/*", relative(0.1)),
    # Nats and bits a character: seeds 0.05 apart, 0.2 where a GPT has read its text a hundred times
    ("epochs/*epochs 100*", within(0.4)),
    ("epochs/*", within(0.15)),
    ("chunk_trm/results/*", within(0.1)),
    ("chunk_trm/worth/*", within(0.1)),
    ("chunk_trm/halting/*/steps", within(1.0)),
    ("chunk_trm/halting/*/nats per character", within(0.1)),
    ("chunk_trm/halting/*", within(0.05)),
    ("chunk_trm/claim/*", relative(0.3)),
    # A planner and a perfect model compute, a grid's winner is one of several that are near equal
    ("samplers/*/policy", IGNORED),
    ("samplers/verdicts/*", IGNORED),
    ("samplers/stories/*", relative(0.25)),
    ("samplers/*/variety", within(3.0)),
    ("samplers/clocks/*/calls", relative(0.5)),  # of one text
    ("samplers/*calls", relative(0.25)),
    ("samplers/speculation/* a call", relative(0.25)),
    ("samplers/speculation/*/nats from the truth", within(1.0)),
    ("samplers/replayed/*", within(1.0)),
    ("samplers/heads/*/nats a tale, at most", within(1.0)),
    ("samplers/heads/*", within(0.1)),
    ("samplers/*", share_of(32)),
    # Seeds solve up to a sixth more or less in one call, and where training was short
    ("puzzles/example/*", IGNORED),
    ("puzzles/grid/*", within(0.4)),
    ("puzzles/*calls", relative(0.3)),
    ("puzzles/*", within(0.3)),
    ("nine_digits/grid/*", within(0.4)),
    ("nine_digits/*calls", relative(0.3)),
    ("nine_digits/*", within(0.3)),
    # Depth and requests: small models, short trainings, seeds a tenth to a third apart
    ("depth/results/*difference*", IGNORED),  # of values that are compared
    ("depth/results/*against*", IGNORED),
    ("depth/results/puzzles*", within(0.4)),
    ("depth/results/tales*", relative(0.5)),
    ("depth/results/*", within(0.3)),
    ("depth/grid/*", relative(0.3)),
    ("depth/halting/*fixed*", IGNORED),
    ("depth/halting/*/saved", IGNORED),
    ("depth/halting/*", relative(0.5)),
    ("instructions/forgotten/*", within(4.0)),
    ("instructions/grid/*", relative(0.3)),
    ("instructions/*", within(0.4)),
    # Gaps: small models, short trainings
    ("infilling/*calls", relative(0.3)),
    ("infilling/nats/*", within(2.0)),
    ("infilling/differences/*", IGNORED),  # of values that are compared
    ("infilling/grid/*", within(0.5)),
    ("infilling/stories/*", within(0.5)),
    ("infilling/*", within(0.3)),
    # Shares, by the number of texts that are judged
    ("quickstart/samplers/*/right", share_of(48)),
    ("quickstart/samplers/*/different", share_of(48)),
    ("lira_vs_gpt/written/*/right", share_of(32)),
    ("claims/coherence/*", share_of(32)),
    ("gate/*tales*/right*", share_of(256)),
    ("gate/*, one a call*/right*", share_of(256)),
    ("gate/*, several a call*/right*", share_of(256)),
    ("gate/forgotten/*/right*", share_of(256)),
    ("gate/molecules/*_distance*", relative(0.5)),
    ("gate/molecules/*/molecules_*", within(0.1)),
    # The gate's own policy writes well from one seed and badly from another, 0.57 apart
    ("gate/*/right*", within(0.6)),
    ("gate/results/*", within(0.6)),
    ("gate/best_threshold/*", within(0.6)),
    # What the models of the gate know, and its molecules, in nats
    ("gate/*/calls", relative(0.4)),
    ("gate/*/passes", relative(0.4)),
    ("gate/*/above the entropy, nats", within(0.6)),
    ("gate/*/nats a tale", within(0.6)),
    ("gate/molecule_likelihood/*", within(4.0)),
    ("gate/*/AUROC", within(0.11)),
    ("gate/*", within(0.05)),
    # What counting texts tells of a few dozen of them
    ("*/length*", relative(0.15)),
    ("*/calls", relative(0.3)),
    ("*repetition*", within(0.1)),
    ("*/diversity_?", within(0.1)),
    ("*/self_similarity", within(0.1)),
    ("claims/confidence/*", within(0.1)),
    ("claims/perplexity/*", relative(0.15)),
    ("claims/weighting/*", relative(0.15)),
    ("*standard_error", relative(0.3)),
)


def rule_of(path: str) -> Rule:
    "The rule of the first pattern that fits a path such as speed/steps/demo/parameters."
    return next((rule for pattern, rule in RULES if fnmatchcase(path, pattern)), OTHERWISE)


def name_of(row) -> str:
    "What a row of a list is called; empty for one that no field names."
    fields = {key: row[key] for key in NAMING if key in row} if isinstance(row, dict) else {}
    return ", ".join(str(v) if isinstance(v, str) else f"{key} {v}" for key, v in fields.items())


def leaves(value, path: str) -> Iterator[tuple[str, object]]:
    "Every number, word and null of a report with its path; rows of one name are counted."
    if isinstance(value, dict):
        for key, held in value.items(): yield from leaves(held, f"{path}/{key}")
    elif isinstance(value, list):
        met = Counter()
        for i, held in enumerate(value):
            name = name_of(held) or str(i)
            met[name] += 1
            yield from leaves(held, f"{path}/{name}" + (f" ({met[name]})" if met[name] > 1 else ""))
    else:
        yield path, value


def number(value) -> bool:
    "Whether a value is a number; JSON's true and false are none."
    return isinstance(value, int | float) and not isinstance(value, bool)


def measured(kept, new) -> bool:
    "Whether two values are numbers and one has a fraction, so that a tolerance can be meant."
    return number(kept) and number(new) and float in (type(kept), type(new))


def agree(rule: Rule, kept, new) -> bool:
    "Whether two values of a report are the same, or as near as their rule allows."
    if type(kept) is type(new) and kept == new: return True
    return measured(kept, new) and rule.agree(kept, new)


def compare(name: str, kept: dict, new: dict) -> tuple[list[tuple], int]:
    "What differs, as path, kept, new and allowed, and how many values agree."
    old, now = dict(leaves(kept, name)), dict(leaves(new, name))
    differ, agreeing = [], 0
    for path in old | now:
        rule, pair = rule_of(path), (old.get(path, MISSING), now.get(path, MISSING))
        if rule.skip: continue
        if path in old and path in now and agree(rule, *pair): agreeing += 1
        else: differ.append((path, *pair, rule.said if measured(*pair) else SAME.said))
    return differ, agreeing


def shown(value) -> str:
    "A value as a cell of the table."
    text = f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "¦")
    return text if len(text) <= 80 else text[:79] + "…"


def told(name: str) -> bool:
    "Print how a report made here compares with the kept one; return whether they agree."
    kept, new = RESULTS / f"{name}.json", ROOT / "reports" / name / "report.json"
    if not kept.exists():
        sys.exit(f"{name} has no kept report: choose {', '.join(evaluations())}")
    if not new.exists():
        sys.exit(f"reports/{name}/report.json does not exist: run `make report-{name}`")
    kept, new = (json.loads(path.read_text(encoding="utf-8")) for path in (kept, new))
    differ, agreeing = compare(name, kept, new)
    if differ:
        rows = [[shown(cell) for cell in row] for row in differ]
        print(table(["path", "kept", "new", "allowed"], rows) + "\n")
    some = f"{len(differ)} value{' differs' if len(differ) == 1 else 's differ'}, " if differ else ""
    print(f"{name}: {some}{agreeing} values agree within their tolerances")
    return not differ


def evaluations() -> list[str]:
    "The evaluations that have a kept report."
    return sorted(path.stem for path in RESULTS.glob("*.json"))


def main() -> int:
    "Compare the named reports, or all that were made here; return 1 if any differs."
    parser = argparse.ArgumentParser(description=" ".join(__doc__.splitlines()[:2]))
    parser.add_argument("names", nargs="*", metavar="NAME", help="an evaluation, as quickstart")
    made = [name for name in evaluations() if (ROOT / "reports" / name / "report.json").exists()]
    names = parser.parse_args().names or made
    if not names:
        sys.exit("reports/ holds no report: run `make report-NAME`, or `make reports`")
    return 0 if all([told(name) for name in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
