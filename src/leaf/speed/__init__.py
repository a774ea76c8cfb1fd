"""Speed: our training step and our teacher pass against what one would use instead, and encoders against each other.

Each in one run on one machine.

Reads:  nothing for the first two, whose models and texts are made up (`synthetic`) with the paper's mix of lengths
        (`mix`); for encoders, the models and texts that are named, or architectures with random weights (`shapes`).
Writes: one JSON record a run, `<train|embed|query>-<cpu|cuda>.json`; `page` has the tables and the figure
        of docs/speed.md, which `leaf report docs/speed.md` puts there.

    leaf speed train --out results/speed
    leaf speed embed --out results/speed
    leaf speed table8 --queries queries.txt --documents passages.txt --out results/speed
"""
