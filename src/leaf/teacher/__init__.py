"""The teacher pass. Reads `texts/`, writes `embeddings/<key>/`: a Parquet file of vectors per text shard, row-aligned.

Teacher vectors are bought once: they are keyed by everything that can change them, and never computed twice.
"""
