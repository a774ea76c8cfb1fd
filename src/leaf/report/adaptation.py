"""What adapting a student changed, in words and tables."""

from collections.abc import Sequence

from leaf.evaluation.adaptation import Change
from leaf.report.words import Table, count, decimals, gain, points


def verdict(changes: Sequence[Change]) -> list[str]:
    """One sentence for each group of held-out texts, and what to do where the guard gave way."""
    said = []
    for each in changes:
        if each.mode != "error":
            continue
        low, high = each.difference.low, each.difference.high
        moved = "did not move" if each.difference.covers(0) else "fell" if high < 0 else "rose"
        said.append(
            f"On {each.what}, ε {moved}: {each.before:.3f} before, {each.after:.3f} after "
            f"({each.difference.value:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})."
        )
        if each.what == "guard texts" and low > 0:
            said.append(
                "The student gave up some of what it knew: raise prepare.guard_ratio, or lower train.lr, to keep more."
            )
    if not any(each.what == "guard texts" for each in changes):
        said.append("There were no guard texts, so nothing is known of texts of other kinds.")
    return said


def error_table(changes: Sequence[Change]) -> Table:
    """Mean ε on held-out texts, none of them trained on."""
    rows = [["held-out texts", "number", "ε before", "ε after", "change"]]
    for each in changes:
        if each.mode == "error":
            low, high = each.difference.low, each.difference.high
            moved = f"{each.difference.value:+.4f} ({low:+.4f} to {high:+.4f})"
            rows.append([each.what, count(each.num), decimals(each.before, 4), decimals(each.after, 4), moved])
    return rows


def score_table(changes: Sequence[Change]) -> Table:
    """Scores in points of 100, with the paired difference."""
    rows = [["dataset", "mode", "before", "after", "change"]]
    for each in changes:
        if each.mode != "error":
            rows.append([each.what, each.mode, points(each.before), points(each.after), gain(each.difference)])
    return rows
