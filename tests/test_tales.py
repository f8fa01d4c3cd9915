"""Tales: probabilities, entropy and verdicts."""
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from shimmer.tales import CAST, STORY, Tales, tell, zipf

TALES = Tales()
SAMPLE = TALES.sample(20_000, seed=5)


def test_probabilities_of_a_listed_grammar_sum_to_one():
    cast = {name: values[: 2 if name in ("hero", "colour", "problem") else 1] for name, values in CAST.items()}
    tales = Tales(cast, {slot: {p: lines[p] for p in ("lost", "stuck")} if isinstance(lines, dict) else lines for slot, lines in STORY.items()})
    texts = set()
    for facts in itertools.product(*cast.values()):
        for told in itertools.product(*(range(n) for n in tales.sizes.values())):
            if sum(told) % 7 == 0: texts.add(tell(tales.story, dict(zip(cast, facts)), list(told)))
    choices = lambda told: math.prod(zipf(n)[i] for n, i in zip(tales.sizes.values(), told))
    expected = sum(choices(told) for told in itertools.product(*(range(n) for n in tales.sizes.values())) if sum(told) % 7 == 0)
    assert sum(math.exp(tales.log_prob(text)) for text in texts) == pytest.approx(expected, rel=1e-9)


def test_mean_surprise_is_the_entropy():
    surprise = -np.array([TALES.log_prob(text) for text in SAMPLE])
    assert abs(surprise.mean() - TALES.entropy()) < 3 * surprise.std() / len(surprise) ** 0.5


def test_every_sample_is_a_tale_told_in_one_way():
    for text in SAMPLE:
        assert TALES.check(text)
    for text in SAMPLE[:500]:
        readings = [r for r in TALES.readings(text) if r[-1].line >= 0]
        assert len(readings) == 1


def test_a_longer_sample_begins_with_the_shorter():
    assert TALES.sample(50, seed=3)[:7] == TALES.sample(7, seed=3)
    assert TALES.sample(5, seed=3) != TALES.sample(5, seed=4)


@given(st.sampled_from(SAMPLE[:2000]), st.data())
def test_a_changed_fact_is_caught_and_named(text, data):
    reading = next(TALES.readings(text))
    said = [(name, value) for sentence in reading for name, value in sentence.facts(TALES.heroes)]
    repeated = sorted({name for name, _ in said if sum(n == name for n, _ in said) > 1} - {"pronoun", "problem"})
    name = data.draw(st.sampled_from(repeated))
    value = dict(said)[name]
    other = data.draw(st.sampled_from([v for v in CAST[name] if v != value and (name != "hero" or TALES.heroes[v] == TALES.heroes[value])]))
    broken = text.replace(value, other, 1)
    verdict = TALES.check(broken)
    assert not verdict and verdict.reason.startswith(name), (broken, verdict.reason)
    assert TALES.log_prob(broken) == -math.inf


@given(st.sampled_from(SAMPLE[:2000]), st.integers(0, 10_000))
def test_check_and_log_prob_agree_on_damaged_texts(text, where):
    words = text.split(" ")
    i = where % len(words)
    for damaged in (" ".join(words[:i] + words[i + 1 :]), text[: where % len(text)], text + " " + words[i], text.replace(" ", "  ", 1), ""):
        assert bool(TALES.check(damaged)) == (TALES.log_prob(damaged) > -math.inf)


def test_a_grammar_that_may_leave_a_fact_unsaid_is_refused():
    with pytest.raises(ValueError, match="feeling may stay unsaid"):
        Tales(story={**STORY, "mood": ("Then it rained.",) * 3})


def test_an_ambiguous_line_sums_over_derivations():
    tales = Tales(story={**STORY, "ending": ("They all went home happy.",) * 2})
    assert tales.log_prob(tales.sample(1, 0)[0]) == pytest.approx(
        Tales(story={**STORY, "ending": ("They all went home happy.",)}).log_prob(tales.sample(1, 0)[0]))


@pytest.mark.parametrize("slot, case, lines, named", [("rescue", "stuck", ("One.",), "lines"), ("trouble", "late", ("Too late.", "It was late."), "the cast's problems")])
def test_a_story_whose_cases_do_not_fit_is_refused(slot, case, lines, named):
    with pytest.raises(ValueError, match=named): Tales(story=STORY | {slot: STORY[slot] | {case: lines}})


def test_a_hero_without_a_pronoun_is_refused():
    with pytest.raises(ValueError, match="Zoe"): Tales(cast=CAST | {"hero": ("Lily", "Zoe")})
