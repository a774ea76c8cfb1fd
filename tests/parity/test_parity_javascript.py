"""The same vectors in Transformers.js, in node and in a headless Chromium, from the graph's output and by the pipeline.

Transformers.js cuts a text by dropping ids off its end, the final [SEP] too: a transformer's cut text is left out here.
"""

import numpy as np
import pytest
from javascript import Found
from students import PRECISIONS, Case, Prompted, check


@pytest.mark.parametrize("name", ["transformer", "table", "phrases", "layer-with-phrases", "network"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("how", ["model", "pipeline"])
@pytest.mark.parametrize("where", ["in_node", "in_chromium"])
def test_transformers_js_agrees_whether_it_pools_or_the_graph_does(request, cases, where, how, precision, name):
    found: Found = request.getfixturevalue(where)
    case: Case = cases[name]
    assert "error" not in found[name][precision], found[name][precision]["error"]
    vectors = dict(zip(case.prompted, np.array(found[name][precision][how], dtype=np.float32), strict=True))
    encoder = Prompted(lambda texts: np.stack([vectors[text] for text in texts]), case.space.dim)
    check(case, encoder, precision, cut=case.is_table)
