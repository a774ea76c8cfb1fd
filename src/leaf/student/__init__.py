"""The student. Reads `texts/` and `embeddings/<key>/`, writes `student*/`: a Sentence Transformers folder.

`y = Norm(Linear(MeanPool(Transformer(x))))` (Eq. 1), trained with `mean ‖y − teacher(x)‖₂` (Eq. 2–3) and nothing else.
"""
