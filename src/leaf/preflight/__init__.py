"""Preflight: what to expect of a recipe, before anyone pays for its teacher pass and its training.

Reads:  a sample of the recipe's texts, its local retrieval sets, the teacher and the students' backbones as they come.
Writes: `preflight.json` in the run folder, and nothing else: it is no stage, and claims no folder.

    from leaf.preflight import print_page, probe

    record = probe(Recipe.load("demo"))
    print_page(record, Console())

    probe.py     all of it in order; warn.py and page.py say it in words
    texts.py     a sample of the training texts, without the texts stage
    rank.py      directions that the teacher's vectors need, and what a narrow head cannot reach
    start.py     students before training, under a closed-form head
    forms.py     evaluation queries beside training queries: forms, and nearest texts
    lengths.py   what tokenizers cut and do not know
    searches.py  small searches to try query vectors on
    predict.py   error and retention after training, as ranges
"""

from leaf.preflight.page import print_page
from leaf.preflight.probe import NUM_TEXTS, probe

__all__ = ["NUM_TEXTS", "print_page", "probe"]
