"""What a person should know before paying for a teacher pass: sentences, the costliest mistake first."""

from collections.abc import Mapping
from typing import Any

#: Shares from which on something is worth a warning.
CUT, UNKNOWN, COVERED, FAR = 0.10, 0.005, 0.80, 0.20
#: Texts for each dimension of a head, from which on the error of the closed form can be carried to more of them.
FEW = 6
#: What a narrow head may lose without a word: ε in mean lengths of a vector.
LOST = 0.05


def warnings(record: Mapping[str, Any]) -> list[str]:
    """The warnings about a record of `probe`, each one sentence."""
    return [*_space(record), *_forms(record), *_tokens(record), *_sample(record)]


def _space(record: Mapping[str, Any]) -> list[str]:
    teacher, said = record["teacher"], []
    if not teacher["normalised"]:
        low, _, high = teacher["lengths"]
        said.append(
            f"the teacher's vectors are not of unit length ({low:.3g} to {high:.3g}): students are trained without "
            "Norm, and ε is in the teacher's own units"
        )
    for student in record["students"]:
        if student["rank_bound"] > LOST * teacher["lengths"][1]:
            kept = 100 * teacher["energy"][student["width"] - 1]
            said.append(
                f"{student['name']} has {student['width']} dimensions for the teacher's {teacher['dim']}: they hold "
                f"{kept:.1f} % of the energy, so ε stays above {student['rank_bound']:.3f} however long it is trained"
            )
    return said


def _forms(record: Mapping[str, Any]) -> list[str]:
    forms, said = record["forms"], []
    if forms is None:
        return ["no local retrieval set: the search is tried on the training texts themselves, which is a weaker test"]
    if not forms["training_queries"]:
        return ["the sample has no training query: students will not have seen a single one"]
    for feature in forms["missing"]:
        seen, asked = forms["features"][feature]
        said.append(
            f"{100 * asked:.0f} % of the evaluation queries {feature}; of the training queries, {100 * seen:.1f} % do"
        )
    if forms["covered"] < COVERED:
        said.append(f"{100 * (1 - forms['covered']):.0f} % of the evaluation queries are of forms that training lacks")
    if forms["nearest"]["far"] > FAR:
        said.append(
            f"{100 * forms['nearest']['far']:.0f} % of the evaluation queries lie further from every training text of "
            "the sample than 95 % of held-out training queries do: another subject, or another way of asking"
        )
    return said


def _sample(record: Mapping[str, Any]) -> list[str]:
    few = [each for each in record["students"] if each["width"] and each["fitted_texts"] < FEW * each["width"]]
    if not few:
        return []
    wide = max(few, key=lambda each: each["width"])
    return [
        f"a head of {wide['width']} dimensions was fitted on {wide['fitted_texts']:,} texts: every ε below comes out "
        f"too high; give it --probe-texts {2 * FEW * wide['width']}"
    ]


def _tokens(record: Mapping[str, Any]) -> list[str]:
    said: dict[str, list[str]] = {}  # what is the same of several encoders is said once
    for entry in record["tokens"]:
        for group, rates in entry["rates"].items():
            if rates["texts_cut"] > CUT:
                cut = (
                    f"{100 * rates['texts_cut']:.0f} % of the {group} are cut at {rates['max_length']} tokens "
                    f"({100 * rates['tokens_cut']:.0f} % of their tokens are lost)"
                )
                said.setdefault(cut, []).extend(entry["encoders"])
            if rates["tokens_unknown"] > UNKNOWN:
                unknown = f"{100 * rates['tokens_unknown']:.1f} % of the tokens in {group} are unknown"
                said.setdefault(unknown, []).extend(entry["encoders"])
    return [f"{what}: {', '.join(who)}" for what, who in said.items()]
