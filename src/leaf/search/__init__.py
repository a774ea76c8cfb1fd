"""Asymmetric search: documents indexed with the teacher, questions asked with the student. Imports no torch.

Reads documents and an encoder of their vectors; writes an index: a folder, or tables of a database.

    import leaf
    from leaf.search import Document, Index

    index = Index.create("my-index", leaf.load(TEACHER), [Document("1", "a text", metadata={"year": 2024})])
    index.search(["a question"], leaf.load("runs/mine/student"), k=10, where="year >= 2020")

store.py      documents, hits, settings, and the interface of every store
index.py      Index: the verbs, with encoders
admission.py  whether an encoder may ask
filters.py    conditions on metadata
documents.py  documents from files
folder.py     the store in a folder; segments.py its files, codes.py what is searched first
postgres.py   PostgreSQL with pgvector; mongodb.py MongoDB Vector Search
databases.py  what the two have in common
making.py     what `leaf index` does; unfinished.py keeps vectors of a change that was stopped
server.py     the search page of `leaf serve --index`; askers.py who may ask there, protocol.py what is asked
"""

from leaf.search.index import Index
from leaf.search.store import Document, Hit

__all__ = ["Document", "Hit", "Index"]
