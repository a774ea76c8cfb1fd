import json
import multiprocessing
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from leaf.errors import LeafError
from leaf.files import atomic_path, digest, quick_digest, write_json
from leaf.models import HubUnreachable, hub_revision, resolve_model
from leaf.provenance import provenance
from leaf.recipe import Recipe
from leaf.run import Run, Stage, difference, read_manifest

RECIPE = Recipe.parse(
    {"name": "x", "teacher": {"model": "t"}, "student": {}, "texts": [{"source": "a.txt", "kind": "query"}]}
)


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("old")

    def dies() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        dies()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["f.txt"]


def test_json_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"value": float("nan")})


def test_a_digest_does_not_depend_on_the_order_of_keys_and_depends_on_every_value():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert len({digest(each) for each in ({"a": 1}, {"a": "1"}, {"a": [1]}, {"b": 1})}) == 4
    # SHA-256 of the two bytes `{}`, from any other implementation.
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_a_quick_digest_sees_both_ends_and_the_size(tmp_path):
    def of(content: bytes) -> str:
        (tmp_path / "f").write_bytes(content)
        return quick_digest(tmp_path / "f")

    body = bytes(3 << 20)
    assert len({of(body), of(b"x" + body[1:]), of(body[:-1] + b"x"), of(body + b"\0")}) == 4
    assert of(body) == of(body)


def test_a_stage_is_complete_only_with_its_manifest_and_only_for_its_inputs(tmp_path):
    stage = Stage(tmp_path / "texts", {"seed": 0})
    assert stage.manifest is None
    stage.close(rows=3)
    assert Stage(tmp_path / "texts", {"seed": 0}).manifest["rows"] == 3
    with pytest.raises(LeafError, match=r"made from other inputs \(seed was 0, is now 1\); choose another --out"):
        _ = Stage(tmp_path / "texts", {"seed": 1}).manifest


def test_a_damaged_manifest_is_one_clear_error(tmp_path):
    (tmp_path / "manifest.json").write_text('{"finger')
    with pytest.raises(LeafError, match=r"manifest\.json is damaged .*; delete"):
        read_manifest(tmp_path)


def finish_a_stage(folder: Path) -> None:
    Run(folder).stage("texts", {}).close()


def test_a_run_folder_belongs_to_the_recipe_that_took_it_once_a_stage_has_finished(tmp_path):
    other = RECIPE.model_copy(update={"teacher": RECIPE.teacher.model_copy(update={"model": "u"})})
    Run(tmp_path).claim(other)
    Run(tmp_path).claim(RECIPE)  # the first was refused, say, before anything was made
    finish_a_stage(tmp_path)
    Run(tmp_path).claim(RECIPE)
    with pytest.raises(LeafError, match=r'belongs to another recipe \(teacher\.model was "t", is now "u"\)'):
        Run(tmp_path).claim(other)
    assert Recipe.load(tmp_path / "recipe.toml") == RECIPE


def test_what_may_change_in_a_run_folder_is_not_named_where_something_else_may_not(tmp_path):
    Run(tmp_path).claim(RECIPE)
    finish_a_stage(tmp_path)
    api = RECIPE.teacher.api.model_copy(update={"price": 0.02})
    may = RECIPE.model_copy(update={"teacher": RECIPE.teacher.model_copy(update={"api": api})})
    assert Run(tmp_path).conflict(may) is None
    may_not = may.model_copy(update={"train": RECIPE.train.model_copy(update={"lr": 1.0})})
    assert Run(tmp_path).conflict(may_not) == "train.lr was 0.0001, is now 1.0"


def _try_lock(folder: Path, answers) -> None:
    try:
        with Run(folder).lock():
            answers.put("locked")
    except LeafError as error:
        answers.put(str(error))


def test_a_second_writer_is_kept_out_until_the_first_is_gone(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    for held in (True, False):
        if held:
            with Run(tmp_path).lock():
                process = context.Process(target=_try_lock, args=(tmp_path, answers))
                process.start()
                assert "is in use by another process" in answers.get(timeout=60)
                process.join()
        else:
            process = context.Process(target=_try_lock, args=(tmp_path, answers))
            process.start()
            assert answers.get(timeout=60) == "locked"
            process.join()


def test_the_first_difference_is_named_with_its_path():
    assert difference({"a": [{"b": 1}]}, {"a": [{"b": 2}]}) == "a[0].b was 1, is now 2"
    assert difference({"a": 1}, {"a": 1, "c": "x"}) == 'c was null, is now "x"'
    assert difference([1, 2], [1]) == "value was [1, 2], is now [1]"


def test_provenance_is_json_and_names_code_versions_and_hardware():
    facts = json.loads(json.dumps(provenance()))
    assert facts["versions"]["numpy"]
    assert facts["hardware"]["cpus"] > 0
    assert facts["time"].endswith("+00:00")


@pytest.mark.parametrize(
    ("answer", "expected", "message"),
    [
        (ConnectionError("no route\nto host"), HubUnreachable, r"the hub cannot be reached for a/b \(no route\)"),
        (TimeoutError(), HubUnreachable, r"the hub cannot be reached for a/b \(TimeoutError\)"),
        (HFValidationError("bad"), LeafError, "the hub shows no model a/b at revision v2; check the name"),
    ],
)
def test_a_hub_that_is_silent_is_told_apart_from_one_that_says_no(monkeypatch, answer, expected, message):
    def asked(*_, **__):
        raise answer

    monkeypatch.setattr(HfApi, "repo_info", asked)
    with pytest.raises(LeafError, match=message) as error:
        hub_revision("a/b", "model", "v2")
    assert type(error.value) is expected


def test_models_are_found_in_folders_and_in_installed_packages(tmp_path):
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("owner/name") == "owner/name"
    assert Path(resolve_model("package:leaf/recipes")).is_dir()
    for spec, message in [
        ("package:no_such_thing/model", "package 'no_such_thing' is not installed; pip install no-such-thing"),
        ("package:leaf/nowhere", "package 'leaf' has no folder 'nowhere'"),
        ("./nowhere", r"no folder './nowhere'"),
        ("a/b/c", "no folder 'a/b/c'"),
    ]:
        with pytest.raises(LeafError, match=message):
            resolve_model(spec)
