"""Speed: our training step and our teacher pass against what one would use instead, in one run on one machine.

Reads:  nothing; models and texts are made up (`synthetic`), with the paper's mix of lengths (`mix`).
Writes: one JSON record a run, `<what>-<cpu|cuda>.json`; `page` makes docs/speed.md of the records in results/speed/.

    leaf speed train --out results/speed
    leaf speed embed --out results/speed
"""
