"""Evaluation reads datasets (BEIR folders, STS tables), asks an `Encoder` and writes one JSON per score.

    from leaf.evaluation.datasets import load
    from leaf.evaluation.evaluate import evaluate_all
    from leaf.evaluation.records import write
    write(evaluate_all(teacher, {"student": student}, [load("scifact"), load("sts12/test.tsv.gz")]), folder)

It knows vectors only through `leaf.encoder.Encoder`, so teacher, student, ONNX file and pair are scored by
one path.
"""
