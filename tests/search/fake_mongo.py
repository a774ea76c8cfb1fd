"""A stand-in for MongoDB with Vector Search: databases in memory that understand the few commands `MongoStore` sends.

It guarantees what the documentation says of them, and no more: commands, stages, operators and fields that it does not
know are errors; documents pass through BSON; `$vectorSearch` sees what the search index was defined to hold, checks
`limit`, `numCandidates` and the filter's operators, and compares float32 vectors of length 1 by their dot product.
"""

import copy
import re
import struct
from types import SimpleNamespace
from typing import Any

import bson
import numpy as np
from bson.binary import Binary
from pymongo.errors import DuplicateKeyError, OperationFailure

PREFILTERS = {"$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$not", "$nor", "$and", "$or"}


class Database:
    """All collections, and a list of the commands that came."""

    def __init__(self) -> None:
        self.collections: dict[str, Collection] = {}
        self.commands: list[tuple[str, str, Any]] = []
        self.client = SimpleNamespace(close=lambda: None)
        self.fail_at: str | None = None
        """A command that fails once, as when a connection breaks."""

    def __getitem__(self, name: str) -> "Collection":
        return self.collections.setdefault(name, Collection(self, name))

    def create_collection(self, name: str) -> None:
        self[name].made = True

    def list_collection_names(self) -> list[str]:
        return [name for name, each in self.collections.items() if each.made]


class Cursor(list):
    """What `find` answers."""

    def __iter__(self):
        # One pass only, as a cursor of the server.
        while self:
            yield self.pop(0)

    def sort(self, field: str, direction: int) -> "Cursor":
        assert (field, direction) == ("_id", 1)
        return Cursor(sorted(list.__iter__(self), key=lambda each: each["_id"].encode()))

    def limit(self, count: int) -> "Cursor":
        return Cursor(list(list.__iter__(self))[:count])


class Collection:
    """One collection; `lag` documents at its end are not in the search index yet."""

    def __init__(self, database: Database, name: str) -> None:
        self.database, self.name, self.made = database, name, False
        self.rows: dict[str, dict[str, Any]] = {}
        self.indexes: dict[str, dict[str, Any]] = {}
        self.queryable = True

    def _note(self, command: str, what: Any = None) -> None:
        self.database.commands.append((command, self.name, copy.deepcopy(what)))
        if self.database.fail_at == command:
            self.database.fail_at = None
            raise OperationFailure("the connection broke")

    def _store(self, row: dict[str, Any]) -> None:
        self.made = True
        self.rows[row["_id"]] = bson.decode(bson.encode(row))

    def insert_one(self, row: dict[str, Any]) -> None:
        self._note("insert_one", row)
        if row["_id"] in self.rows:
            raise DuplicateKeyError("E11000 duplicate key")
        self._store(row)

    def find_one(self, condition: dict[str, Any]) -> dict[str, Any] | None:
        return next(iter(self.find(condition)), None)

    def find(self, condition: dict[str, Any], projection: dict[str, int] | None = None) -> Cursor:
        self._note("find", condition)
        return Cursor([project(row, projection) for row in self.rows.values() if matches(row, condition)])

    def count_documents(self, condition: dict[str, Any]) -> int:
        return sum(matches(row, condition) for row in self.rows.values())

    def update_one(self, condition: dict[str, Any], update: dict[str, Any]) -> Any:
        self._note("update_one", update)
        assert not update.keys() - {"$set", "$unset"}
        row = next((row for row in self.rows.values() if matches(row, condition)), None)
        if row is None:
            return SimpleNamespace(matched_count=0)
        row = copy.deepcopy(row)
        for path, value in update.get("$set", {}).items():
            *outer, last = path.split(".")
            inner = row
            for each in outer:
                inner = inner.setdefault(each, {})
            inner[last] = value
        for path in update.get("$unset", {}):
            row.pop(path, None)
        self._store(row)
        return SimpleNamespace(matched_count=1)

    def bulk_write(self, writes: list[Any], *, ordered: bool) -> None:
        self._note("bulk_write", len(writes))
        assert not ordered
        assert writes, "MongoDB refuses a bulk write without operations"
        for write in writes:
            assert write._upsert
            assert write._filter == {"_id": write._doc["_id"]}
            self._store(dict(write._doc))

    def delete_many(self, condition: dict[str, Any]) -> None:
        self._note("delete_many", condition)
        for each in [each for each, row in self.rows.items() if matches(row, condition)]:
            del self.rows[each]

    def drop(self) -> None:
        self._note("drop")
        self.rows, self.indexes, self.made = {}, {}, False

    def create_search_index(self, model: Any) -> str:
        self._note("create_search_index", model.document)
        assert self.made, "a search index is made of a collection that is there"
        assert model.document.keys() == {"name", "type", "definition"}
        assert model.document["type"] == "vectorSearch"
        self._define(model.document["name"], model.document["definition"])
        return model.document["name"]

    def update_search_index(self, name: str, definition: dict[str, Any]) -> None:
        self._note("update_search_index", definition)
        assert name in self.indexes
        self._define(name, definition)

    def _define(self, name: str, definition: dict[str, Any]) -> None:
        assert definition.keys() == {"fields"}
        vector, *filters = definition["fields"]
        assert vector.keys() == {"type", "path", "numDimensions", "similarity", "quantization"}
        assert vector["type"] == "vector"
        assert vector["similarity"] in ("euclidean", "cosine", "dotProduct")
        assert vector["quantization"] in ("none", "scalar", "binary")
        assert 1 <= vector["numDimensions"] <= 8192
        assert vector["quantization"] != "binary" or vector["numDimensions"] % 8 == 0
        assert all(each.keys() == {"type", "path"} and each["type"] == "filter" for each in filters)
        self.indexes[name] = definition

    def list_search_indexes(self, name: str) -> list[dict[str, Any]]:
        state = "READY" if self.queryable else "BUILDING"
        return [{"name": name, "queryable": self.queryable, "status": state}] if name in self.indexes else []

    def aggregate(self, pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self._note("aggregate", pipeline)
        (first, stage), second = next(iter(pipeline[0].items())), pipeline[1]
        assert len(pipeline) == 2
        if first == "$vectorSearch":
            assert second.keys() == {"$project"}
            return [project(row, second["$project"]) for row in self._vector_search(stage)]
        assert first == "$match"
        assert second.keys() == {"$merge"}
        merge = second["$merge"]
        assert merge == {"into": merge["into"], "on": "_id", "whenMatched": "replace", "whenNotMatched": "insert"}
        for row in list(self.rows.values()):
            if matches(row, stage):
                self.database[merge["into"]]._store(row)
        return []

    def _vector_search(self, stage: dict[str, Any]) -> list[dict[str, Any]]:
        known = {"index", "path", "queryVector", "limit", "numCandidates", "exact", "filter"}
        assert not stage.keys() - known, stage.keys()
        assert type(stage["limit"]) is int
        assert stage["limit"] > 0
        if stage.get("exact"):
            assert "numCandidates" not in stage
        else:
            assert stage["limit"] <= stage["numCandidates"] <= 10_000
        if stage["index"] not in self.indexes or not self.queryable:
            return []  # "doesn't return results if you misspell the index name"
        vector, *filters = self.indexes[stage["index"]]["fields"]
        assert stage["path"] == vector["path"]
        query = vector_of(stage["queryVector"])
        assert len(query) == vector["numDimensions"]
        assert abs(np.linalg.norm(query) - 1) < 1e-3, "dotProduct takes vectors of length 1"
        condition = stage.get("filter", {})
        check_prefilter(condition, {each["path"] for each in filters})
        found = [row for row in self.rows.values() if matches(row, condition)]
        return sorted(found, key=lambda row: -float(query @ vector_of(row["embedding"])))[: stage["limit"]]


def vector_of(binary: Binary) -> np.ndarray:
    """A BSON vector of float32, read by its specification: subtype 9, 0x27 0x00, little-endian values."""
    assert isinstance(binary, Binary)
    assert binary.subtype == 9
    data = bytes(binary)
    assert data[:2] == b"\x27\x00"
    return np.array(struct.unpack(f"<{(len(data) - 2) // 4}f", data[2:]), dtype=np.float32)


def check_prefilter(condition: dict[str, Any], paths: set[str]) -> None:
    """What `$vectorSearch` may be asked: indexed paths, and the operators of its documentation."""
    for key, value in condition.items():
        if key in ("$and", "$or", "$nor"):
            assert key in PREFILTERS
            for each in value:
                check_prefilter(each, paths)
            continue
        assert key in paths, f"{key} is not indexed as a filter"
        assert set(value) <= PREFILTERS, value


def project(row: dict[str, Any], projection: dict[str, int] | None) -> dict[str, Any]:
    """Fields that are wanted, or all but those that are not."""
    row = copy.deepcopy(row)
    if projection is None:
        return row
    if all(projection.values()):
        return {name: value for name, value in row.items() if name in projection or name == "_id"}
    assert not any(projection.values())
    return {name: value for name, value in row.items() if name not in projection}


_MISSING = object()


def matches(row: dict[str, Any], condition: dict[str, Any]) -> bool:
    """Whether a document meets MQL."""
    for key, value in condition.items():
        if key == "$and":
            met = all(matches(row, each) for each in value)
        elif key == "$or":
            met = any(matches(row, each) for each in value)
        elif key == "$nor":
            met = not any(matches(row, each) for each in value)
        else:
            assert not key.startswith("$"), key
            found: Any = row
            for part in key.split("."):
                found = found.get(part, _MISSING) if isinstance(found, dict) else _MISSING
            operators = value if isinstance(value, dict) else {"$eq": value}
            met = all(meets(found, operator, operand) for operator, operand in operators.items())
        if not met:
            return False
    return True


def bracket(value: Any) -> str:
    """Values compare with those of their own kind."""
    return "bool" if isinstance(value, bool) else "number" if isinstance(value, (int, float)) else type(value).__name__


def meets(found: Any, operator: str, operand: Any) -> bool:
    """One operator. What is missing equals null, differs from anything, and is in no order."""
    missing = found is _MISSING
    if operator == "$exists":
        return missing != operand
    if operator == "$eq":
        return (missing and operand is None) or (
            not missing and bracket(found) == bracket(operand) and found == operand
        )
    if operator == "$ne":
        return not meets(found, "$eq", operand)
    if operator == "$in":
        return any(meets(found, "$eq", each) for each in operand)
    if missing or bracket(found) != bracket(operand):
        return False
    if operator == "$regex":
        return re.search(operand, found) is not None
    one, other = (each.encode() if isinstance(each, str) else each for each in (found, operand))
    return {"$lt": one < other, "$lte": one <= other, "$gt": one > other, "$gte": one >= other}[operator]
