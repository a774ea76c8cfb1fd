import subprocess
import sys
from collections import Counter

import pytest

from leaf.errors import LeafError
from leaf.recipe import Recipe
from leaf.texts.installed import entries, split

PACKAGES = Recipe.load("demo").texts[0].packages


def test_the_first_sentence_is_the_query_and_the_prose_after_it_the_document() -> None:
    summary, body = split(
        """Return the mean of `values`, e.g. NaN if empty. The sum is divided by
        the number of values.

        Parameters
        ----------
        values : list
            What is :func:`averaged <numpy.mean>`.

        Examples
        --------
        >>> mean([1, 2])
        1.5

        Notes
        -----
        Runs in linear time.
        """
    )
    assert summary == "Return the mean of values, e.g. NaN if empty."
    assert body == ("The sum is divided by the number of values. values : list What is averaged. Runs in linear time.")


@pytest.mark.parametrize(
    "code",
    [
        ">>> f(1)\n2",
        "```python\nsecret = f()\n\nsecret\n```",
        "+----+\n| f  |\n+----+",
        ".. math::\n\n    f = x",
        "Example:\n    f(1)",
    ],
)
def test_code_tables_and_formulas_are_not_part_of_the_document(code: str) -> None:
    doc = f"Compute the result of it.\n\nThe words that come before the code stay here.\n\n{code}"
    assert split(doc) == ("Compute the result of it.", "The words that come before the code stay here.")


def test_a_literal_block_ends_where_the_indentation_ends() -> None:
    code = "    with f:\n\n        pass"
    doc = f"Open a file now.\n\nIt is closed at the end of the block::\n\n{code}\n\nThat is all of it."
    assert split(doc)[1] == "It is closed at the end of the block: That is all of it."


def test_the_call_that_begins_a_compiled_docstring_is_not_a_summary() -> None:
    assert split("dict(**kwargs) -> new dictionary\n\nBuild a mapping from names to values.") == (
        "Build a mapping from names to values.",
        "",
    )


def test_parameters_are_no_query_and_short_parts_are_dropped() -> None:
    summary, body = split("values (list of int): The numbers that will be averaged here.")
    assert summary == ""
    assert body.startswith("values (list of int): The numbers")
    assert split("Too short.\n\nAlso too short a body.") == ("", "")


def test_long_bodies_are_cut_at_a_sentence_end() -> None:
    body = split("Say it over and over.\n\n" + "This sentence has exactly forty letters!! " * 60)[1]
    assert 900 < len(body) <= 1000
    assert body.endswith("letters!!")


def test_a_body_does_not_repeat_the_summary() -> None:
    doc = "Put an item in.\n\nPut an item in. If the queue is full, wait until a slot is free."
    assert split(doc) == ("Put an item in.", "If the queue is full, wait until a slot is free.")


def test_an_unknown_package_is_named() -> None:
    with pytest.raises(LeafError, match="no package 'no_such_package' is installed"):
        list(entries(["no_such_package"]))


@pytest.mark.slow
def test_the_demo_packages_give_enough_texts_and_pairs() -> None:
    found = list(entries(PACKAGES))
    names = [entry.name for entry in found]
    assert len(names) == len(set(names))
    assert {"pathlib.Path.glob", "builtins.str.split", "scipy.optimize.minimize"} <= set(names)
    assert any(name.startswith("topics.for.") for name in names)
    assert not any(".tests." in name or "._vendor" in name for name in names)
    queries = Counter(entry.summary.lower() for entry in found if entry.summary)
    documents = Counter(entry.body.lower() for entry in found if entry.body)
    assert len(queries) + len(documents) >= 15_000
    once = [e for e in found if queries[e.summary.lower()] == 1 and documents[e.body.lower()] == 1]
    assert len(once) >= 6_000
    # In the language reference a title is the subject of the first sentence: 'The "for" statement is used'.
    described = [entry for entry in once if entry.summary and not entry.name.startswith("topics.")]
    assert not any(entry.body.startswith(entry.summary) for entry in described)


def test_reading_imports_no_third_party_package_and_is_the_same_every_time() -> None:
    code = (
        "import sys, hashlib; from leaf.texts.installed import entries\n"
        "found = repr(list(entries(['numpy', 'pydantic'])))\n"
        "loaded = {'numpy', 'pydantic', 'torch'} & set(sys.modules)\n"
        "print(sorted(loaded), hashlib.sha256(found.encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].startswith("[] ")
