"""As much of PromQL as the tests need: which metrics an expression names, and what it compares."""

import re

SETS = {"and", "or", "unless"}
TOKEN = re.compile(r"""
    "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*'      # text
  | \{ (?: "(?:\\.|[^"\\])*" | [^"}] )* \}     # matchers
  | \[ [^\]]* \]                               # range
  | [A-Za-z_:][A-Za-z0-9_:]*                   # word
  | >= | <= | == | != | > | <                  # comparison
  | [()] | \s+ | [^\s]
""", re.VERBOSE)
COMPARISON = {">=", "<=", "==", "!=", ">", "<"}
METRIC = re.compile(r"^(?:switchyard|mcp|process)_[a-z0-9_]+$|^switchyard:[A-Za-z0-9_:]+$|^up$")
LABELS = {"mcp_method_name", "mcp_protocol_version"}


def tokens(expression):
    """(start, text, depth of parentheses), white space left out."""
    depth, found = 0, []
    for match in TOKEN.finditer(expression):
        text = match.group()
        if text.isspace():
            continue
        if text == ")":
            depth -= 1
        found.append((match.start(), text, depth))
        if text == "(":
            depth += 1
    return found


def metrics(expression):
    """Every metric that is named, as it is written."""
    return {text for _, text, _ in tokens(expression) if METRIC.match(text)} - LABELS


def family(name, known):
    """The metric that a series belongs to: a histogram has three series."""
    for suffix in ("_bucket", "_sum", "_count"):
        if name.endswith(suffix) and name[: -len(suffix)] in known:
            return name[: -len(suffix)]
    return name


def compared(expression):
    """What is compared, without numbers: each must give data, or the comparison never holds."""
    found = tokens(expression)
    sides = []
    for at, (_, text, depth) in enumerate(found):
        if text in COMPARISON:
            sides.append(_side(expression, found, at, depth, -1))
            sides.append(_side(expression, found, at, depth, 1))
    return [side for side in sides if metrics(side)]


def _side(expression, found, at, depth, step):
    """From the comparison to the end of its operand, on one side."""
    end = at + step
    while 0 <= end < len(found):
        _, text, here = found[end]
        if here < depth or (here == depth and (text in SETS or text in COMPARISON or text == ",")):
            break
        end += step
    first, last = (end + 1, at) if step < 0 else (at + 1, end)
    if step < 0:
        first = _after_matching(found, first, depth)
    start = found[first][0]
    stop = found[last][0] if last < len(found) else len(expression)
    return expression[start:stop].strip()


def _after_matching(found, first, depth):
    """Past `on (…)` and `ignoring (…)` that follow `and`, `or` and `unless`."""
    if found[first][1] in ("on", "ignoring"):
        first += 1
        while not (found[first][1] == ")" and found[first][2] == depth):
            first += 1
        first += 1
    return first
