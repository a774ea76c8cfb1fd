"""Texts: everything a student is trained on, cleaned once and cut into shards.

Reads:  what `[[texts]]` names: files, hub data sets, tokenizer vocabularies, installed documentation.
Writes: `texts/part-00000.parquet` … and `texts/held-out.parquet` (columns text, kind, source) and, where
        asked for, `texts/held-out-pairs/`, a retrieval set in BEIR's layout.
"""
