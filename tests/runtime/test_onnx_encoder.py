"""`OnnxEncoder` against a table whose vectors are worked out from its rows, and everything that it refuses."""

import fnmatch
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import numpy as np
import pytest
from tokenizers import Tokenizer

import leaf.runtime
from leaf.encoder import Encoder
from leaf.errors import LeafError
from leaf.loading import load_for_serving
from leaf.runtime import OnnxEncoder, artifact
from leaf.runtime.encoder import TOKENS_PER_THREAD, _batches
from onnx_table import DIM, PAD, SEP, TABLE, UNK, USAGE, ids_of, mean_of, save_graph
from tiny import save_teacher, save_tokenizer, sentences

TEXTS = ["babe kilo", "dake", "mano tiro lake rena doki", "babe", "nobi kilo"]


def test_a_vector_is_the_mean_over_prompt_text_and_special_tokens(table_folder):
    encoder = OnnxEncoder(table_folder)
    queries, documents = encoder.encode_query(TEXTS), encoder.encode_document(TEXTS)
    assert queries.dtype == documents.dtype == np.float32
    np.testing.assert_allclose(queries, [mean_of(ids_of(f"ba be {text}")) for text in TEXTS], atol=1e-6)
    np.testing.assert_allclose(documents, [mean_of(ids_of(text)) for text in TEXTS], atol=1e-6)


def test_vectors_are_not_scaled_where_the_space_is_not(changed):
    encoder = OnnxEncoder(changed(normalised=False, similarity="dot"))
    expected = [mean_of(ids_of(text), normalised=False) for text in TEXTS]
    np.testing.assert_allclose(encoder.encode_document(TEXTS), expected, atol=1e-6)
    assert encoder.similarity == "dot"


def test_a_long_text_is_cut_so_that_the_end_token_still_fits(table_folder):
    words = ["babe", "kilo", "dake", "mano", "tiro", "lake", "rena", "doki", "nobi", "rade", "mibo", "kode"]
    encoder = OnnxEncoder(table_folder)
    # max_length is 12: of 12 words, 10 remain as a document, and 8 after the two tokens of the query prompt.
    np.testing.assert_allclose(
        encoder.encode_document([" ".join(words)])[0], mean_of(ids_of(" ".join(words[:10]))), atol=1e-6
    )
    np.testing.assert_allclose(
        encoder.encode_query([" ".join(words)])[0], mean_of(ids_of(" ".join(["ba", "be", *words[:8]]))), atol=1e-6
    )
    assert encoder.count_tokens([" ".join(words), "babe"], "document") == [12, 3]
    assert encoder.count_tokens(["babe"], "query") == [5]


def test_what_the_tokenizer_file_would_cut_or_pad_is_up_to_the_onnx_file(changed):
    path = changed(max_length=None)
    file = str(path.parent.parent / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=40)
    tokenizer.save(file)
    words = " ".join(["babe"] * 60 + ["kilo"] * 30)
    encoder = OnnxEncoder(path)
    np.testing.assert_allclose(encoder.encode_document([words])[0], mean_of(ids_of(words)), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_document(["kilo"])[0], mean_of(ids_of("kilo")), atol=1e-6)
    assert encoder.count_tokens([words, "kilo"], "document") == [92, 3]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_neighbours_and_padding_change_nothing(table_folder, batch_size):
    texts = sentences(40, seed=3)
    heard: list[int] = []
    encoder = OnnxEncoder(table_folder, threads=1)
    together = encoder.encode_document(texts, batch_size=batch_size, advance=heard.append)
    alone = np.concatenate([encoder.encode_document([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert sum(heard) == 40
    assert max(heard) <= batch_size


def test_batches_are_of_like_length_and_bounded_by_texts_and_by_padded_tokens():
    # Longest first: the nines do not fit together in 12 tokens, four and three do, and a batch holds two texts.
    assert list(_batches([3, 9, 1, 9, 4], 2, 12)) == [[1], [3], [4, 0], [2]]
    # A text that is longer than a batch may be goes alone.
    assert list(_batches([50, 2, 2], 8, 12)) == [[0], [1, 2]]
    assert list(_batches([], 8, 12)) == []


def test_more_texts_than_are_sorted_at_a_time_come_back_in_order(table_folder, monkeypatch):
    monkeypatch.setattr("leaf.runtime.encoder.TEXTS_PER_CHUNK", 7)
    texts = sentences(30, seed=5)
    vectors = OnnxEncoder(table_folder).encode_document(texts)
    # 12 tokens hold ten words between the special ones.
    expected = [mean_of(ids_of(" ".join(text.split()[:10]))) for text in texts]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_no_texts_are_no_vectors_and_no_words_are_the_special_tokens(table_folder):
    encoder = OnnxEncoder(table_folder)
    assert encoder.encode_query([]).shape == (0, DIM)
    np.testing.assert_allclose(encoder.encode_document(["", "babe"])[0], mean_of(ids_of("")), atol=1e-6)


def test_without_special_tokens_an_empty_text_is_zero_and_leaves_others_alone(changed):
    encoder = OnnxEncoder(changed(add_special_tokens=False))
    vectors = encoder.encode_document(["", "babe kilo"])
    np.testing.assert_array_equal(vectors[0], np.zeros(DIM))
    np.testing.assert_allclose(vectors[1], mean_of(ids_of("babe kilo")[1:-1]), atol=1e-6)
    np.testing.assert_array_equal(encoder.encode_document([""]), np.zeros((1, DIM)))


def test_special_tokens_in_a_text_are_taken_apart_where_the_student_does_so(changed):
    together = OnnxEncoder(changed()).encode_document(["babe [SEP]"])[0]
    np.testing.assert_allclose(together, mean_of([*ids_of("babe")[:-1], SEP, SEP]), atol=1e-6)
    # "[", "sep" and "]" are three words that tiny's tokenizer does not know.
    apart = OnnxEncoder(changed(split_special_tokens=True)).encode_document(["babe [SEP]"])[0]
    np.testing.assert_allclose(apart, mean_of([*ids_of("babe")[:-1], UNK, UNK, UNK, SEP]), atol=1e-6)


@pytest.mark.parametrize("text", ["ÀÉÎ œuvre", "漢字 babe", "👩‍🚀", "babe\x00\r\n\tkilo"])
def test_any_unicode_has_a_vector_of_length_one(table_folder, text):
    assert np.linalg.norm(OnnxEncoder(table_folder).encode_query([text])) == pytest.approx(1, abs=1e-6)


def test_cut_vectors_are_scaled_back_to_length_one_only_where_the_space_is_normalised(changed):
    expected = np.array([mean_of(ids_of(text), normalised=False)[:8] for text in TEXTS])
    plain = OnnxEncoder(changed(normalised=False, similarity="dot"), truncate_dim=8)
    np.testing.assert_allclose(plain.encode_document(TEXTS), expected, atol=1e-6)
    scaled = OnnxEncoder(changed(), truncate_dim=8)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(scaled.encode_document(TEXTS), expected, atol=1e-6)
    assert scaled.dim == 8
    assert scaled.encode_query([]).shape == (0, 8)


def test_many_threads_can_share_one_encoder(table_folder):
    encoder = OnnxEncoder(table_folder, threads=2)
    texts = [sentences(12, seed=seed) for seed in range(16)]
    expected = [encoder.encode_query(each) for each in texts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(encoder.encode_query, texts))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_it_is_an_encoder_and_says_what_it_is(table_folder):
    encoder = OnnxEncoder(table_folder, precision="q8", threads=3, truncate_dim=16)
    assert isinstance(encoder, Encoder)
    assert (encoder.name, encoder.dim, encoder.max_length) == ("table-q8-16d", 16, 12)
    assert encoder.prompts == {"query": "ba be ", "document": ""}
    assert repr(encoder) == (
        "OnnxEncoder('table-q8-16d', dim=16, similarity='cosine', max_length=12, backend='onnxruntime', threads=3)"
    )
    assert OnnxEncoder(table_folder / "onnx" / "model.onnx", name="mine").name == "mine"


def test_identity_follows_what_changes_vectors_and_nothing_else(table_folder, tmp_path):
    copy = shutil.copytree(table_folder, tmp_path / "copy")
    own = OnnxEncoder(table_folder).identity()
    assert OnnxEncoder(copy, threads=1, name="other").identity() == own
    assert OnnxEncoder(table_folder, precision="q8").identity() != own
    assert OnnxEncoder(table_folder, truncate_dim=8).identity() != own
    with open(copy / "tokenizer.json", "a") as file:
        file.write("\n")
    assert OnnxEncoder(copy).identity() != own


def test_the_onnx_folder_itself_will_do(table_folder):
    assert OnnxEncoder(table_folder / "onnx").path == table_folder / "onnx" / "model.onnx"


def test_texts_that_cannot_be_encoded_are_shown(table_folder):
    encoder = OnnxEncoder(table_folder)
    with pytest.raises(LeafError, match=r"one string, expected a list .* \[text\]"):
        encoder.encode_query("babe")
    with pytest.raises(LeafError, match=r"the text 'ba be a\\ud800' is not valid Unicode"):
        encoder.encode_query(["babe", "a\ud800"])


def test_other_precisions_are_named_where_one_is_missing(table_folder, tmp_path):
    with pytest.raises(LeafError, match="was not exported as q4; there is fp32, q8"):
        OnnxEncoder(table_folder, precision="q4")
    with pytest.raises(LeafError, match="no precision 'int8'; expected one of fp32, fp16, q8, q8-portable, q4, q4f16"):
        OnnxEncoder(table_folder, precision="int8")
    deep = shutil.copytree(table_folder, tmp_path / "a" / "student")  # not of the form OWNER/NAME
    assert load_for_serving(f"{deep}:q8").name == "table-q8"
    with pytest.raises(LeafError, match="student:q8 names q8 and --precision fp32"):
        load_for_serving(f"{deep}:q8", precision="fp32")
    with pytest.raises(LeafError, match=r"holds no ONNX files .* run `leaf export"):
        OnnxEncoder(tmp_path)
    with pytest.raises(LeafError, match="holds fp32, expected q8; leave precision out"):
        OnnxEncoder(table_folder / "onnx" / "model.onnx", precision="q8")


def test_missing_and_damaged_files_are_named(changed, tmp_path):
    with pytest.raises(LeafError, match=r"no file 'none\.onnx'"):
        OnnxEncoder("none.onnx")
    with pytest.raises(LeafError, match="no folder"):
        OnnxEncoder(tmp_path / "none")
    path = changed()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(LeafError, match=r"tokenizer\.json is damaged"):
        OnnxEncoder(path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(LeafError, match=r"no tokenizer\.json beside"):
        OnnxEncoder(path)
    whole = changed().read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a graph"):
        path.write_bytes(damaged)
        with pytest.raises(LeafError, match="cannot be read: it is damaged"):
            OnnxEncoder(path)


@pytest.mark.parametrize(
    ("usage", "message"),
    [
        (None, "has no 'leaf' metadata; only ONNX files made by `leaf export`"),
        ({**USAGE, "format": 2}, "written in format 2 and this leaf reads 1; pip install --upgrade leaf"),
        ({key: value for key, value in USAGE.items() if key != "prompts"}, "damaged 'leaf' metadata .*prompts"),
        ("{", "damaged 'leaf' metadata"),
        ("[]", "damaged 'leaf' metadata"),
    ],
)
def test_a_file_that_does_not_say_how_it_is_used_is_not_guessed_at(changed, usage, message):
    path = save_graph(changed(), usage)
    with pytest.raises(LeafError, match=message):
        OnnxEncoder(path)


def test_settings_out_of_range_are_refused(table_folder, monkeypatch):
    with pytest.raises(LeafError, match="answers with 24 dimensions: 25 is not within 1"):
        OnnxEncoder(table_folder, truncate_dim=25)
    with pytest.raises(LeafError, match="answers with 24 dimensions: 0 is not within 1"):
        OnnxEncoder(table_folder, truncate_dim=0)
    with pytest.raises(LeafError, match="threads is 0, expected 1 or more"):
        OnnxEncoder(table_folder, threads=0)
    with pytest.raises(LeafError, match="no backend 'tensorrt'; expected one of onnxruntime, openvino"):
        OnnxEncoder(table_folder, backend="tensorrt")
    with pytest.raises(LeafError, match="for bfloat16 take backend='openvino'"):
        OnnxEncoder(table_folder, compute_dtype="bfloat16")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(LeafError, match="pip install openvino"):
        OnnxEncoder(table_folder, backend="openvino")


def test_errors_are_one_line(changed):
    path = changed()
    path.write_bytes(b"not a graph")
    with pytest.raises(LeafError) as caught:
        OnnxEncoder(path)
    assert "\n" not in str(caught.value)


def test_a_batch_of_long_texts_keeps_to_the_tokens_of_its_threads(changed):
    heard: list[int] = []
    encoder = OnnxEncoder(changed(max_length=None), threads=2)
    encoder.encode_document([" ".join(["babe"] * 126)] * 10, advance=heard.append)
    assert 2 * TOKENS_PER_THREAD // 128 == 4  # 126 words and two special tokens
    assert heard == [4, 4, 2]


class TestOpenVino:
    """The other engine."""

    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("openvino")

    def test_it_answers_like_onnx_runtime(self, table_folder):
        texts = sentences(20, seed=9)
        encoder = OnnxEncoder(table_folder, backend="openvino", threads=2)
        expected = OnnxEncoder(table_folder)
        np.testing.assert_allclose(encoder.encode_query(texts), expected.encode_query(texts), atol=1e-5)
        assert encoder.usage == expected.usage
        assert encoder.identity() != expected.identity()
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(encoder.encode_query, [texts] * 8))
        np.testing.assert_allclose(found, [expected.encode_query(texts)] * 8, atol=1e-5)

    def test_earlier_vectors_stay_when_the_next_text_is_encoded(self, table_folder):
        encoder = OnnxEncoder(table_folder, backend="openvino")
        first = encoder.encode_document(["babe"])
        encoder.encode_document(["kilo"])
        np.testing.assert_allclose(first[0], mean_of(ids_of("babe")), atol=1e-5)

    def test_bfloat16_is_near_or_refused(self, table_folder):
        import openvino

        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            found = OnnxEncoder(table_folder, backend="openvino", compute_dtype="bfloat16").encode_document(TEXTS)
            assert min(row @ mean_of(ids_of(text)) for row, text in zip(found, TEXTS, strict=True)) > 0.999
        else:
            with pytest.raises(LeafError, match="no bfloat16"):
                OnnxEncoder(table_folder, backend="openvino", compute_dtype="bfloat16")

    def test_foreign_and_damaged_files_are_refused(self, changed):
        path = save_graph(changed(), None)
        with pytest.raises(LeafError, match="has no 'leaf' metadata"):
            OnnxEncoder(path, backend="openvino")
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(LeafError, match="cannot be read: it is damaged"):
            OnnxEncoder(path, backend="openvino")


class TestHub:
    """Students on the hub. The hub is played by a folder; what is asked of it is what counts."""

    @pytest.fixture
    def hub(self, table_folder, tmp_path, monkeypatch):
        remote = shutil.copytree(table_folder, tmp_path / "remote")
        for name in ("space.json", "canaries.safetensors", "model.safetensors", "config.json"):
            (remote / name).write_text("{}")
        local = tmp_path / "local"

        def snapshot_download(repository, *, allow_patterns, local_files_only):
            assert (repository, local_files_only) == ("owner/student", False)
            for file in (each for each in remote.rglob("*") if each.is_file()):
                name = file.relative_to(remote).as_posix()
                if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                    (local / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, local / name)
            return str(local)

        class HfApi:
            def list_repo_files(self, repository):
                return [file.relative_to(remote).as_posix() for file in remote.rglob("*")]

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
        monkeypatch.setattr(artifact, "hub_revision", lambda repository, kind: "0" * 40)
        return local

    def test_only_the_one_file_and_what_belongs_to_it_is_fetched(self, hub):
        encoder = OnnxEncoder("owner/student", precision="q8")
        fetched = {file.relative_to(hub).as_posix() for file in hub.rglob("*") if file.is_file()}
        assert fetched == {"onnx/model_quantized.onnx", "tokenizer.json", "space.json", "canaries.safetensors"}
        np.testing.assert_allclose(encoder.encode_document(["babe"])[0], mean_of(ids_of("babe")), atol=1e-6)

    def test_a_precision_that_the_hub_lacks_is_refused_with_those_it_has(self, hub):
        with pytest.raises(LeafError, match="owner/student was not exported as q4f16; there is fp32, q8"):
            OnnxEncoder("owner/student", precision="q4f16")

    def test_a_hub_that_answers_but_hands_nothing_out_is_one_line(self, hub, monkeypatch):
        def refuse(*_, **__):
            raise OSError("401 Client Error\nmore about it")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(
            LeafError, match=r"does not hand out onnx/model\.onnx of owner/student \(401 Client Error\);"
        ):
            OnnxEncoder("owner/student")

    def test_without_a_network_the_error_says_so(self):
        with pytest.raises(LeafError, match="the hub cannot be reached for owner/student"):
            OnnxEncoder("owner/student")

    def test_without_a_network_an_earlier_download_is_used(self, table_folder, tmp_path, monkeypatch):
        repository = tmp_path / "models--owner--student"
        shutil.copytree(table_folder, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        encoder = OnnxEncoder("owner/student")
        np.testing.assert_allclose(encoder.encode_document(["babe"])[0], mean_of(ids_of("babe")), atol=1e-6)


def test_the_package_loads_its_names_when_they_are_asked_for():
    assert leaf.runtime.__all__ == ["OnnxEncoder", "RemoteEncoder"]
    assert all(getattr(leaf.runtime, name) for name in leaf.runtime.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = leaf.runtime.nothing


def test_the_pad_token_is_never_part_of_a_mean(changed):
    # Row PAD of the table is as large as any other: with a wrong mask, the shorter text would move.
    assert np.linalg.norm(mean_of([PAD], normalised=False)) > 1
    vectors = OnnxEncoder(changed()).encode_document(["babe", "babe kilo dake mano"])
    np.testing.assert_allclose(vectors[0], mean_of(ids_of("babe")), atol=1e-6)


AWKWARD = (
    *sentences(20, seed=11),
    "",
    " ".join(["babe kilo"] * 60),  # cut: tiny models read 48 tokens
    "ÀÉÎ œuvre ﬁn İ",
    "漢字 कखग ру́сский 👩‍🚀",
    "babe [SEP] kilo [MASK]",
    "  babe\r\n\tkilo\u200b\x00 ",
)


@pytest.fixture(scope="module", params=["transformer", "table"])
def both(request, tmp_path_factory):
    """A Sentence Transformers model, normalised or a plain table, and its export."""
    from onnx import helper, save
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    from leaf.export.graph import to_graph

    folder = tmp_path_factory.mktemp(request.param)
    usage = {**USAGE, "prompts": {"query": "ba be: ", "document": ""}, "max_length": 48}
    if request.param == "table":
        save_tokenizer(folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(48)
        table = StaticEmbedding(tokenizer, embedding_weights=TABLE)
        model = SentenceTransformer(modules=[table], device="cpu", prompts=usage["prompts"])
        usage |= {"normalised": False, "add_special_tokens": False}
    else:
        saved = save_teacher(folder, dim=DIM, prompts=usage["prompts"])
        model = SentenceTransformer(str(saved), device="cpu")
        shutil.copy(saved / "tokenizer.json", folder)
    graph = to_graph(model)
    helper.set_model_props(graph, {"leaf": json.dumps(usage)})
    save(graph, str(folder / "student.onnx"))
    return model, OnnxEncoder(folder / "student.onnx")


@pytest.mark.parametrize("role", ["query", "document"])
def test_an_export_answers_like_sentence_transformers_row_by_row(both, role):
    model, encoder = both
    expected = model.encode(list(AWKWARD), prompt_name=role, convert_to_numpy=True)
    found = encoder.encode(AWKWARD, role, batch_size=8)
    np.testing.assert_allclose(found, expected, atol=2e-6 * max(1, np.abs(expected).max()))
    # The two roles differ, so a prompt forgotten on both sides would not go unseen.
    other = encoder.encode(AWKWARD, "document" if role == "query" else "query")
    assert np.abs(found - other).max(axis=1).min() > 1e-3
