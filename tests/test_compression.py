"""Compression against integers, packed bits and Sentence Transformers."""

from collections.abc import Sequence

import numpy as np
import pytest

from leaf.compression import PRECISIONS, Compressed, Compression, Int8, exactly, pack, sample, signs, truncate
from leaf.encoder import AsymmetricEncoder, Encoder, normalised
from leaf.errors import LeafError
from leaf.evaluation.retrieval import search
from tiny import sentences


class Table:
    """An encoder of numbered texts: the query "3" is row 3."""

    def __init__(self, vectors, similarity="cosine"):
        self.name, self.similarity = "table", similarity
        self.vectors = np.asarray(vectors, np.float32)
        self.dim = self.vectors.shape[1]

    def encode_query(self, texts: Sequence[str], *, batch_size=32, advance=None):
        return self.vectors[[int(text) for text in texts]]

    encode_document = encode_query


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def hamming(first, second):
    """Differing bits of packed rows, `[n, bytes]` and `[m, bytes]`."""
    return np.bitwise_count(first[:, None] ^ second[None]).sum(axis=2, dtype=np.int64)


def test_values_outside_the_range_saturate_they_do_not_wrap():
    # 127 x / 0.5: 0.1 is 25.4, 0.25 is 63.5 (to even), 0.003 is 0.76; ±0.5 is ±127 and all beyond stays there.
    values = np.array([[0, 0.1, -0.1, 0.25, 0.003, 0.001, 0.5, -0.5, 0.7, -3e38]], np.float32)
    codes = Int8(0.5, 10).codes(values)
    assert codes.dtype == np.int8
    assert codes.tolist() == [[0, 25, -25, 64, 1, 0, 127, -127, 127, -127]]


def test_calibration_lets_no_dimension_saturate_more_than_once_in_a_thousand():
    # Of 2000 documents two may saturate: 1999 and 2000. Dimension 0 is large and dimension 1 small, as where a model
    # puts most of the length into one dimension; a quantile over all values would end far below.
    documents = np.zeros((2000, 500), np.float32)
    documents[:, 0] = np.random.default_rng(0).permutation(np.arange(1, 2001))
    documents[:, 1] = -0.5
    int8 = Int8.calibrate(documents, similarity="dot")
    assert int8 == Int8(1998.0, 500)
    assert (int8.codes(documents)[:, 0] == 127).sum() <= 2000 * 0.001 + 8  # 8: codes 127 by rounding, 1990 to 1998
    assert np.quantile(documents, 0.999) < 1100
    assert Int8.calibrate(documents[:900], similarity="dot").limit == documents[:900, 0].max()


def test_a_calibration_belongs_to_the_dimension_it_was_made_for():
    # Cut to two dimensions, (0.6, 0, 0.8) is (1, 0) once renormalised; a dot product keeps 0.6.
    documents = np.array([[0.6, 0, 0.8]], np.float32)
    assert Int8.calibrate(documents).limit == pytest.approx(0.8)
    assert Int8.calibrate(documents, 2) == Int8(1.0, 2)
    assert Int8.calibrate(documents, 2, "dot").limit == pytest.approx(0.6)
    with pytest.raises(LeafError, match="vectors of 3 dimensions and an int8 calibration for 2"):
        Int8(1.0, 2).codes(documents)


def test_one_scale_keeps_integer_dot_products_proportional_to_the_real_ones():
    # Dimensions vary by 100 to 1, as after a rotation onto principal axes. A range per dimension, as in Sentence
    # Transformers' quantize_embeddings, weighs them alike, and its integers say something else than the cosine.
    from sentence_transformers.util import quantize_embeddings

    documents = normalised(normal(1000, 64) * np.geomspace(1, 0.01, 64, dtype=np.float32))
    true = documents[:50].astype(np.float64) @ documents.T

    def correlation(codes):
        integers = codes.astype(np.int64)
        return np.corrcoef((integers[:50] @ integers.T).ravel(), true.ravel())[0, 1]

    assert correlation(Int8.calibrate(documents).codes(documents)) > 0.9999
    assert correlation(quantize_embeddings(documents, "int8", calibration_embeddings=documents)) < 0.9


def test_codes_agree_with_sentence_transformers_at_its_range_and_calibrated_ones_lose_less():
    from sentence_transformers.util import quantize_embeddings

    vectors = normalised(normal(400, 96))
    theirs = quantize_embeddings(vectors, "int8", ranges=np.stack([-np.ones(96), np.ones(96)]))
    ours = Int8(1.0, 96).codes(vectors)
    # They round down in 255 steps from −128, floor(127.5 x − 0.5), which stores zero as −1: ours, one lower throughout.
    difference = ours.astype(int) - theirs
    assert set(np.unique(difference)) <= {0, 1, 2}
    assert difference.mean() == pytest.approx(1, abs=0.02)
    true = vectors @ vectors.T

    def lost(codes):
        unit = normalised(codes.astype(np.float32))
        return np.abs(unit @ unit.T - true).mean()

    calibrated = lost(Int8.calibrate(vectors).codes(vectors))
    assert calibrated < lost(ours) / 2
    assert lost(ours) < lost(theirs) / 2
    assert calibrated < 0.002


@pytest.mark.parametrize("dim", [8, 1040, 1041, 4096])
def test_integer_dot_products_are_exact_where_narrow_accumulators_are_not(dim):
    rng = np.random.default_rng(dim)
    queries, documents = (rng.integers(100, 128, (20, dim)).astype(np.int8) for _ in range(2))
    documents[0] = queries[0] = 127  # the largest there is: 127² d
    expected = queries.astype(np.int64) @ documents.astype(np.int64).T
    for narrow in (np.int8, np.int16):
        wrapped = queries.astype(narrow) @ documents.astype(narrow).T
        assert wrapped.dtype == narrow
        assert (wrapped != expected).any()
    floats = [each.astype(np.float32) for each in (queries, documents)]
    assert (floats[0] @ floats[1].T == expected).all() == (dim <= 1040)  # 127² · 1041 is odd and beyond 2²⁴
    wide = exactly(*floats)
    assert (wide[0] @ wide[1].T == expected).all()
    assert {each.dtype.name for each in wide} == {"float32" if dim <= 1040 else "float64"}
    # And search keeps what it is given: of scores beyond 2²⁴ that differ by 1, the greater wins.
    rows, scores = search(*wide, 5, "dot")
    assert (rows == np.argsort(-expected, axis=1, kind="stable")[:, :5]).all()
    assert (scores == -np.sort(-expected, axis=1)[:, :5]).all()


def test_real_vectors_of_many_dimensions_are_exact_in_float32():
    vectors = normalised(normal(300, 4096))
    codes = Int8.calibrate(vectors).codes(vectors)
    floats = exactly(codes.astype(np.float32), codes.astype(np.float32))
    assert floats[0].dtype == np.float32
    assert (floats[0] @ floats[1].T == codes.astype(np.int64) @ codes.astype(np.int64).T).all()


@pytest.mark.parametrize("dim", [8, 64, 100])
def test_signs_and_packed_bits_are_one_similarity(dim):
    from sentence_transformers.util import quantize_embeddings

    queries, documents = normal(7, dim, seed=1), normal(50, dim, seed=2)
    documents[3] = 0  # a zero is not above zero: −1, and bit 0
    distance = hamming(pack(queries), pack(documents))
    dots = signs(queries).astype(np.int64) @ signs(documents).astype(np.int64).T
    assert (dots == dim - 2 * distance).all()
    assert pack(documents).shape == (50, -(-dim // 8))
    assert (pack(documents) == quantize_embeddings(documents, "ubinary")).all()
    assert (np.unpackbits(pack(documents), axis=1)[:, :dim] == (documents > 0)).all()


def test_truncation_equals_that_of_sentence_transformers_by_cosine(teacher_folder):
    from sentence_transformers import SentenceTransformer

    from leaf.loading import load

    texts = sentences(12)
    theirs = SentenceTransformer(str(teacher_folder), truncate_dim=8, device="cpu")
    teacher = load(str(teacher_folder), device="cpu")
    ours = Compressed(teacher, 8)
    expected = theirs.encode_document(texts)
    np.testing.assert_allclose(ours.encode_document(texts), normalised(expected), atol=1e-5)
    similarity = theirs.similarity(theirs.encode_query(texts), expected).numpy()
    np.testing.assert_allclose(ours.encode_query(texts) @ ours.encode_document(texts).T, similarity, atol=1e-5)
    assert (ours.dim, ours.similarity, ours.name) == (8, "cosine", f"{teacher.name} 8d")


def test_a_dot_product_keeps_its_lengths_and_zero_stays_zero():
    vectors = np.array([[3, 4, 12], [0, 0, 5]], np.float32)
    np.testing.assert_allclose(truncate(vectors, 2), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert truncate(vectors, 2, "dot").tolist() == [[3, 4], [0, 0]]
    assert truncate(vectors, 3, "dot").tolist() == vectors.tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_compressed_encoder_answers_with_what_an_index_stores(precision):
    table = Table(normal(30, 24))
    int8 = Int8.calibrate(table.vectors, 20)
    encoder = Compressed(table, 20, precision, int8)
    assert isinstance(encoder, Encoder)
    texts = [str(row) for row in range(30)]
    for role, vectors in (("query", encoder.encode_query(texts)), ("document", encoder.encode_document(texts))):
        stored = encoder.compression.stored(table.vectors, role)
        assert vectors.shape == (30, 20)
        assert vectors.dtype == np.float32
        assert stored.nbytes == 30 * encoder.compression.bytes_per_vector(role)
        if encoder.compression.stored_as(role) == "binary":
            stored = 2 * np.unpackbits(stored, axis=1)[:, :20].astype(int) - 1
        assert (vectors == stored).all()
    assert encoder.similarity == ("cosine" if precision == "float32" else "dot")


def test_bytes_and_types_of_every_precision():
    int8 = Int8(1.0, 100)
    sizes = {
        precision: [
            Compression(100, precision, calibration=int8).bytes_per_vector(role) for role in ("query", "document")
        ]
        for precision in PRECISIONS
    }
    # 100 floats; 100 bytes; 100 bits in 13 bytes.
    assert sizes == {"float32": [400, 400], "int8": [100, 100], "binary": [13, 13], "int8xbinary": [100, 13]}
    mixed = Compressed(Table(normal(5, 100)), precision="int8xbinary", calibration=int8)
    assert np.unique(mixed.encode_document(["0", "1"])).tolist() == [-1, 1]
    assert len(np.unique(mixed.encode_query(["0", "1"]))) > 20


def test_nothing_asked_changes_nothing():
    table = Table(normal(5, 8))
    same = Compressed(table)
    assert (same.encode_query(["4", "2"]) == table.vectors[[4, 2]]).all()
    assert (same.name, same.dim, same.similarity) == ("table", 8, "cosine")


def test_a_pair_shares_one_calibration_and_binary_documents_can_be_asked_by_int8():
    teacher, student = Table(normal(200, 32)), Table(normal(200, 32) + 0.2 * normal(200, 32, seed=3))
    int8 = Int8.calibrate(teacher.vectors)
    pair = AsymmetricEncoder(*(Compressed(each, None, "int8xbinary", int8) for each in (student, teacher)))
    assert (pair.similarity, pair.dim, pair.name) == ("dot", 32, "table int8xbinary | table int8xbinary")
    assert pair.queries.compression.calibration is pair.documents.compression.calibration
    texts = [str(row) for row in range(200)]
    rows, scores = search(pair.encode_query(texts), pair.encode_document(texts), 1, pair.similarity)
    assert (rows[:, 0] == np.arange(200)).mean() > 0.95
    # The score of a query by hand: its int8 codes, each with the sign of the document.
    codes = np.clip(np.rint(normalised(student.vectors)[0] * 127 / int8.limit), -127, 127).astype(int)
    assert scores[0, 0] == np.where(teacher.vectors[rows[0, 0]] > 0, codes, -codes).sum()


def test_a_compressed_encoder_is_cached_under_what_it_does():
    table = Table(normal(5, 8))
    assert Compressed(table, 4).identity() is None
    table.identity = lambda: {"model": "table"}
    int8 = Int8(1.0, 4)
    identities = [
        Compressed(table, *settings).identity()
        for settings in ((4,), (5,), (4, "binary"), (4, "int8", int8), (4, "int8", Int8(2.0, 4)))
    ]
    assert all(identity["encoder"] == {"model": "table"} for identity in identities)
    assert len({str(identity) for identity in identities}) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((9,), "table answers with 8 dimensions: 9 is not within 1 to that many"),
        ((0,), "0 is not within 1"),
        ((4, "int8"), r"int8 needs a calibration: Int8.calibrate\(teacher_documents, dim=4\)"),
        ((4, "int8xbinary"), "int8xbinary needs a calibration"),
        ((4, "int8", Int8(1.0, 8)), "calibration for 8 dimensions does not fit 4"),
        ((4, "int4"), "precision 'int4' is unknown, expected one of float32, int8, binary, int8xbinary"),
    ],
)
def test_what_cannot_be_compressed_is_refused(settings, message):
    with pytest.raises(LeafError, match=message):
        Compressed(Table(normal(3, 8)), *settings)


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_nan_never_becomes_an_ordinary_code(precision):
    vectors = normal(3, 8)
    vectors[1, 2] = np.nan
    form = Compression(8, precision, calibration=Int8(1.0, 8))
    for work in (form.stored, lambda each: form.compress(each, "query")):
        with pytest.raises(LeafError, match="NaN or inf in vector 1 of 3"):
            work(vectors)


def test_calibration_refuses_what_gives_no_scale():
    with pytest.raises(LeafError, match="no vectors to calibrate"):
        Int8.calibrate(np.empty((0, 4), np.float32))
    with pytest.raises(LeafError, match="all zero"):
        Int8.calibrate(np.zeros((3, 4), np.float32))
    with pytest.raises(LeafError, match="NaN or inf in vector 0 of 1"):
        Int8.calibrate(np.array([[np.inf, 1]], np.float32))
    with pytest.raises(LeafError, match="5 dimensions asked of vectors that have 4"):
        Int8.calibrate(np.ones((3, 4), np.float32), 5)


def test_a_sample_spreads_over_each_array_and_holds_no_more():
    arrays = [np.arange(100, dtype=np.float32)[:, None], np.array([[500], [501]], np.float32)]
    assert sample(iter(arrays), 3)[:, 0].tolist() == [0, 50, 99, 500, 501]  # 49.5 rounds to even
    with pytest.raises(LeafError, match="no datasets"):
        sample([])
