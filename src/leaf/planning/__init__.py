"""`leaf plan RECIPE`: what a recipe costs before anything is spent. No network, no torch, a second or two.

Reads:  the recipe, a few hundred texts of each source that is on this machine, `config.json` of models that are, and
        what is finished in the run folder. What is not there is estimated, and every number says where it is from.
Writes: nothing.

    from leaf.planning import plan, print_plan

    record = plan(Recipe.load("leaf-ir"), hardware="h200")
    print_plan(record, Console())

    planner.py       all of it in order; parts.py the teacher and the students, hours.py their time, warn.py the words
    texts.py         rows and tokens of every source; sampling.py looks at what is here, lengths.py counts
    architecture.py  parameters and FLOPs from a config; models.py finds it, and has those of popular models
    rates.py         measured rates, and what they say of other hardware
    storage.py       disk and memory
    page.py          the record on one page
"""

from leaf.planning.page import print_plan
from leaf.planning.planner import plan

__all__ = ["plan", "print_plan"]
