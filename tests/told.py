"""Trajectories made by hand, tokenizers that name what they are told to, and a reader of the pages that show them."""
import json
from html.parser import HTMLParser
from types import SimpleNamespace

import torch
from hypothesis import strategies as st

from shimmer.samplers import Trajectory

MASK_ID, PAD_ID, EOS_ID = 10, 8, 9


def named(names):
    "A tokenizer that shows ids by the given names."
    token = lambda i: {MASK_ID: "<mask>", PAD_ID: "<pad>", EOS_ID: "<eos>"}.get(int(i)) or names[int(i)]
    return SimpleNamespace(token=token, decode=lambda ids: "".join(token(i) for i in ids if int(i) < PAD_ID))


WORDS = named([" zero", " one", " two", " three", " four", " five", " six", " seven"])


def trajectory(canvases, given, confidence=None, num_calls=None):
    "A trajectory from its canvases, [S + 1][B][L]."
    canvases, given = torch.tensor(canvases), torch.tensor(given, dtype=torch.bool)
    calls, (rows, length) = len(canvases) - 1, canvases.shape[1:]
    confidence = torch.linspace(0, 1, calls * rows * length).view(calls, rows, length) if confidence is None else torch.tensor(confidence)
    num_calls = torch.full((rows,), calls) if num_calls is None else torch.tensor(num_calls)
    return Trajectory(canvases[-1], canvases, confidence, given, num_calls, ["canvas full"] * rows, MASK_ID, PAD_ID, EOS_ID)


def two_rows():
    "Two rows: the first is reopened and written again, the second is shorter, ends a call earlier, and has a pad."
    m, p, e = MASK_ID, PAD_ID, EOS_ID
    return trajectory([[[0, m, m, m], [1, m, m, p]], [[0, 2, 3, m], [1, 4, e, p]], [[0, 2, m, m], [1, 4, e, p]], [[0, 2, 5, e], [1, 4, e, p]]],
                      [[1, 0, 0, 0], [1, 0, 0, 1]], num_calls=[3, 1])


@st.composite
def trajectories(draw):
    "Any history of a canvas: written, rewritten, reopened, with given positions and pads."
    calls, rows, length = draw(st.integers(0, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 7))
    cell = st.sampled_from([*range(8), EOS_ID, MASK_ID])
    canvases = [[[draw(cell) for _ in range(length)] for _ in range(rows)] for _ in range(calls + 1)]
    fixed = [[draw(st.booleans()) for _ in range(length)] for _ in range(rows)]
    for r in range(rows):
        for i in range(length):
            if fixed[r][i]:
                token = draw(st.sampled_from([0, 1, PAD_ID, EOS_ID]))
                for canvas in canvases: canvas[r][i] = token
    return trajectory(canvases, fixed, num_calls=[draw(st.integers(0, calls)) for _ in range(rows)])


class Reader(HTMLParser):
    "The texts of elements, scripts apart, as a browser would find them."
    def __init__(self, page):
        super().__init__()
        self.open, self.cells, self.scripts, self.tags = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag in ("input", "meta", "br", "wbr"): return
        self.open.append((tag, dict(attributes)))
        if "tok" in (dict(attributes).get("class") or "").split() and "title" in dict(attributes): self.cells.append((dict(attributes)["class"].split()[1], ""))
        if tag == "script": self.scripts.append((dict(attributes).get("type"), ""))

    def handle_endtag(self, tag):
        if tag not in ("br", "wbr"): assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not self.open: return
        tag, attributes = self.open[-1]
        if tag == "script": self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif "title" in attributes: self.cells[-1] = (self.cells[-1][0], self.cells[-1][1] + data)


def player_data(page):
    return json.loads(next(text for kind, text in Reader(page).scripts if kind == "application/json"))


NASTY = ["</script>", "<b>", "\"'", "&amp;", "<!--", "\n", "\u2028", "]]>"]  # tokens that a page must not take for its own signs


def any_names():
    "Eight tokens, some of which are markup."
    return st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(NASTY), min_size=8, max_size=8)


def any_titles():
    "Titles, some of which are markup."
    return st.text(max_size=20) | st.sampled_from(NASTY)
