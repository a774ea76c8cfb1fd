import tomllib

import pytest

from leaf.errors import LeafError
from leaf.given import Given
from leaf.recipe import Recipe, Student, shipped_recipes

MINIMAL = """
name = "mine"
[teacher]
model = "t"
[student]
layers = [0, 2]
[[texts]]
source = "a.parquet"
kind = "query"
"""


def load(tmp_path, text, *overrides):
    (tmp_path / "r.toml").write_text(text)
    return Recipe.load(tmp_path / "r.toml", overrides)


def test_the_defaults_are_the_papers_hyper_parameters(tmp_path):
    train = load(tmp_path, MINIMAL).train
    # §2.2: AdamW 1e-4 → 1e-5, betas 0.9/0.999, decay 0.01, batch 32, 3 cycles of 10 epochs, linear per epoch.
    assert (train.lr, train.final_lr, train.betas, train.weight_decay) == (1e-4, 1e-5, (0.9, 0.999), 0.01)
    assert (train.batch_size, train.cycles, train.epochs_per_cycle, train.schedule) == (32, 3, 10, "linear")


@pytest.mark.parametrize("name", ["demo", "leaf-fast", "leaf-ir", "leaf-mt"])
def test_a_shipped_recipe_says_the_same_after_a_round_trip_through_toml(name):
    recipe = shipped_recipes()[name]
    for defaults in (True, False):
        assert Recipe.parse(tomllib.loads(recipe.to_toml(defaults=defaults))) == recipe
    assert recipe.description


def test_leaf_ir_and_leaf_mt_have_the_papers_teachers_heads_and_texts():
    ir, mt = Recipe.load("leaf-ir"), Recipe.load("leaf-mt")
    assert ir.teacher.model == "Snowflake/snowflake-arctic-embed-m-v1.5"
    assert mt.teacher.model == "mixedbread-ai/mxbai-embed-large-v1"
    assert (ir.students[0].bias, mt.students[0].bias) == (True, False)
    assert (
        ir.teacher.prompts["query"]
        == mt.teacher.prompts["query"]
        == ("Represent this sentence for searching relevant passages: ")
    )
    assert ir.texts == mt.texts
    by_name = {source.name: source for source in ir.texts}
    assert by_name["FineWeb"].rows == 3_000_000
    assert sum(source.rows for name, source in by_name.items() if name.startswith("CC-News")) == 900_000
    assert ir.prepare.held_out == 128 * 32


def test_layers_that_are_empty_and_layers_that_are_not_given_stay_different(tmp_path):
    for line, expected in [("layers = []", ()), ("", None), ("layers = [0, 2]", (0, 2))]:
        recipe = load(tmp_path, MINIMAL.replace("layers = [0, 2]", line))
        assert recipe.students[0].layers == expected
        assert Recipe.parse(tomllib.loads(recipe.to_toml())).students[0].layers == expected


@pytest.mark.parametrize(
    ("layers", "total", "kept"),
    [
        # i · (total − 1) / (layers − 1): 0, 5; 0, 2.5, 5; 0, 5.5, 11; 0, 3.67, 7.33, 11; halves are rounded down.
        (2, 6, (0, 5)),
        (3, 6, (0, 2, 5)),
        (3, 12, (0, 5, 11)),
        (4, 12, (0, 4, 7, 11)),
        # 0, 2.75, 5.5, 8.25, 11; and 0, 4/3, 8/3, 4
        (5, 12, (0, 3, 5, 8, 11)),
        (4, 5, (0, 1, 3, 4)),
        (1, 6, (5,)),
        (1, 1, None),
        (6, 6, None),
        (0, 6, ()),
        ([2, 0], 6, (2, 0)),
        (None, 6, None),
    ],
)
def test_a_number_of_layers_is_spread_evenly_from_the_first_to_the_last(layers, total, kept):
    assert Student(layers=layers).kept_layers(total) == kept


def test_a_number_of_layers_survives_toml_and_leaves_lists_as_they_are(tmp_path):
    for line, written in [("layers = 2", 2), ("layers = 0", []), ("layers = [0, 5]", [0, 5])]:
        recipe = load(tmp_path, MINIMAL.replace("layers = [0, 2]", line))
        assert recipe.students[0].model_dump(mode="json")["layers"] == written
        assert Recipe.parse(tomllib.loads(recipe.to_toml())) == recipe


NO_STUDENT = MINIMAL.replace("[student]\nlayers = [0, 2]\n", "")
CASCADE = """
[[students]]
name = "student-3l"
layers = 3
[[students]]
name = "student-2l"
backbone = "student-3l"
layers = [0, 2]
[[students]]
name = "student-1l"
backbone = "student-2l"
layers = 1
[[students]]
name = "student-table"
layers = 0
"""


def test_a_student_may_begin_from_one_further_up():
    recipe = Recipe.parse(tomllib.loads(NO_STUDENT + CASCADE))
    three, two, one, _ = recipe.students
    assert [recipe.above(each) for each in recipe.students] == [None, three, two, None]
    # Of the teacher's six layers three are 0, 2, 5; the first and the last of those 0, 5; and 1 is the last.
    begun = [recipe.from_model(each, 6) for each in recipe.students]
    assert [(each.backbone, each.layers) for each in begun[1:]] == [
        ("teacher", (0, 5)),
        ("teacher", (5,)),
        ("teacher", ()),
    ]
    # Of a model that nobody knows there are two and one all the same.
    assert [recipe.from_model(each, None).layers for each in (two, one)] == [(0, 2), 1]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name = "student-3l"', 'name = "student-3l"\nbackbone = "student-1l"', "has to stand before it"),
        ("layers = 3\n", "layers = 0\n", "student-2l begins from student-3l, a lookup table, which has no layers"),
    ],
)
def test_a_cascade_that_cannot_be_is_refused(old, new, expected):
    with pytest.raises(LeafError, match=expected):
        Recipe.parse(tomllib.loads(NO_STUDENT + CASCADE.replace(old, new)))


def test_more_layers_than_there_are_is_an_error():
    with pytest.raises(LeafError, match=r"student\.layers = 7, but the backbone has 6 layers"):
        Student(layers=7).kept_layers(6)
    with pytest.raises(LeafError, match="names layer 6, but the backbone has layers 0 to 5"):
        Student(layers=[0, 6]).kept_layers(6)


def test_the_default_recipe_asks_for_what_it_has_not():
    with pytest.raises(
        LeafError, match=r"'teacher' is missing; give --teacher MODEL.*'texts' is missing; give --queries"
    ):
        Recipe.load("leaf-fast")
    assert Recipe.load("leaf-fast", given=Given("t", queries=["q.txt"])).students == (Student(layers=2),)


def test_a_student_changes_only_the_training_fields_it_names(tmp_path):
    text = MINIMAL.replace("layers = [0, 2]", "train = { lr = 1e-3 }") + "[train]\nbatch_size = 64\n"
    recipe = load(tmp_path, text)
    train = recipe.train_of(recipe.students[0])
    assert (train.lr, train.batch_size) == (1e-3, 64)


def test_a_variant_changes_what_it_names_and_inherits_the_rest(tmp_path):
    (tmp_path / "v.toml").write_text('extends = "r.toml"\nname = "v"\n[student]\nbias = false\n[train]\nlr = 2e-4\n')
    base = load(tmp_path, MINIMAL)
    variant = Recipe.load(tmp_path / "v.toml")
    assert (variant.name, variant.train.lr, variant.students[0].bias) == ("v", 2e-4, False)
    assert variant.students[0].layers == (0, 2)
    assert (variant.teacher, variant.texts) == (base.teacher, base.texts)


def test_a_recipe_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    (tmp_path / "b.toml").write_text('extends = "a.toml"')
    with pytest.raises(LeafError, match="extends itself"):
        Recipe.load(tmp_path / "a.toml")


def test_overrides_are_read_as_toml_and_reach_into_tables(tmp_path):
    recipe = load(tmp_path, MINIMAL, "train.lr=3e-4", "train.schedule=cosine", "evaluate.data=['x']")
    assert (recipe.train.lr, recipe.train.schedule, recipe.evaluate.data) == (3e-4, "cosine", ("x",))


def test_another_teacher_brings_its_own_prompts_and_length():
    recipe = Recipe.load("leaf-ir", given=Given("other/model"))
    assert recipe.teacher.model == "other/model"
    assert (recipe.teacher.prompts, recipe.teacher.max_length, recipe.teacher.batch_size) == ({}, None, 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.batchsize=3", r"unknown key 'train\.batchsize' \(did you mean 'batch_size'\?\)"),
        ("train.lr=-1", r"'train\.lr': input should be greater than 0, got -1"),
        ("train.lr=nan", r"'train\.lr': input should be a finite number"),
        ("teachr.model=x", r"unknown key 'teachr' \(did you mean 'teacher'\?\)"),
        ("train.schedule=step", r"'train\.schedule': input should be 'linear'"),
        ("evaluate.data=['held-out-pairs']", r"names held-out-pairs, but prepare\.held_out_pairs is 0"),
        (
            "student.layers=-1",
            r"'students\.0\.layers': expected layers to keep, such as \[0, 2, 5\], or how many.*got -1",
        ),
        ("student.layers=[0, 1.5]", "or how many, such as 3, got"),
        ("student.layers=true", "or how many, such as 3, got True"),
        ("student.name=texts", r"'students\.0\.name': string should match"),
        ("student.train.learning=1", "unknown key 'learning'"),
        ("lr", "'lr' is not a setting: write table.field=value"),
        ("texts.rows=1", "texts is a list, which a single setting cannot change"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(tmp_path, change, message):
    with pytest.raises(LeafError, match=message) as error:
        load(tmp_path, MINIMAL, change)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path):
    with pytest.raises(
        LeafError, match=r"no recipe 'nope': give a \.toml file, or one of demo, ladder, ladder-cpu, leaf-fast"
    ):
        Recipe.load("nope")
    (tmp_path / "passages-1.parquet").touch()
    with pytest.raises(LeafError, match=r"passages-1\.parquet' is no recipe; .* a pattern needs quotes: --documents"):
        Recipe.load(tmp_path / "passages-1.parquet")
    with pytest.raises(LeafError, match="not valid TOML"):
        load(tmp_path, "name = ")
