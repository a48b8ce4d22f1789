"""Text and orders -> settings: right values, or every mistake at once."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, PositiveInt, field_validator, model_validator
from typing_extensions import Self

from trainer.core.errors import RecipeError
from trainer.core.settings import Settings
from trainer.recipe.mistakes import RecipeMistakesError
from trainer.recipe.parsing import inline, read_settings, write_settings


class Precision(str, Enum):
    full = "float32"
    half = "bfloat16"


class Thin(Settings):
    kind: Literal["thin"] = "thin"
    rank: PositiveInt = 16
    dropout: float = Field(default=0.0, ge=0, lt=1)
    layers: tuple[str, ...] = Field(default=("attention",), min_length=1)


class Thick(Settings):
    kind: Literal["thick"] = "thick"
    rank: PositiveInt = 4


class Folder(Settings):
    kind: Literal["folder"] = "folder"
    path: Path
    repeats: PositiveInt = 1


AnyAdapter = Annotated[Thin | Thick, Field(discriminator="kind")]


class Data(Settings):
    sources: tuple[Annotated[Folder, Field(discriminator="kind")], ...]
    trigger: str = ""
    flip: bool = False


class Order(Settings):
    name: str
    precision: Precision = Precision.half
    adapter: AnyAdapter = Field(default_factory=lambda: Thin(rank=32))
    second: AnyAdapter | None = None
    data: Data | None = None
    rate: float = 1e-4
    steps: PositiveInt = 1000
    size: int | tuple[int, int] = 64
    cache: bool | Thick = True
    trackers: tuple[AnyAdapter, ...] = ()
    weights: dict[str, float] = Field(default_factory=dict[str, float])
    runs: Path = Path("runs")
    beta: tuple[float, float] = (0.9, 0.999)

    @field_validator("name")
    @classmethod
    def _no_path(cls, name: str) -> str:
        if "/" in name:
            raise ValueError(f"The name {name} is a path.")
        return name

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.steps == 13:
            raise RecipeError("Thirteen steps bring bad luck.", where="steps", mend="Take 14.")
        return self


def read(text: str, *orders: str) -> Order:
    return read_settings(text, "recipes/x.yaml", orders, Order)


def mistakes(text: str, *orders: str) -> list[tuple[str, str, str]]:
    with pytest.raises(RecipeMistakesError) as raised:
        read(text, *orders)
    return [(mistake.what, mistake.where, mistake.mend) for mistake in raised.value.mistakes]


def only_mistake(text: str, *orders: str) -> tuple[str, str, str]:
    found = mistakes(text, *orders)
    assert len(found) == 1, found
    return found[0]


FULL = """
name: blob
precision: float32
adapter: {kind: thick, rank: 8}
second: {kind: thin, dropout: 1e-1, layers: [a, b]}
data:
  sources:
    - kind: folder
      path: datasets/blob
      repeats: 4
    - {path: other}
  trigger: no
rate: 1e-3
steps: 1e3
size: [512, 768]
cache: {kind: thick}
trackers: [{kind: thin}, {kind: thick, rank: 2}]
weights: {a: 1, b: .5}
runs: elsewhere
beta: [0.9, 1]
"""


def test_every_form_of_value_is_read() -> None:
    recipe = read(FULL)
    assert recipe == Order(
        name="blob",
        precision=Precision.full,
        adapter=Thick(rank=8),
        second=Thin(dropout=0.1, layers=("a", "b")),
        data=Data(sources=(Folder(path=Path("datasets/blob"), repeats=4), Folder(path=Path("other"))), trigger="no"),
        rate=1e-3,
        steps=1000,
        size=(512, 768),
        cache=Thick(),
        trackers=(Thin(), Thick(rank=2)),
        weights={"a": 1.0, "b": 0.5},
        runs=Path("elsewhere"),
        beta=(0.9, 1.0),
    )


def test_what_is_written_reads_as_the_same() -> None:
    recipe = read(FULL)
    text = write_settings(recipe)
    assert read(text) == recipe
    assert "  layers: [a, b]\n" in text
    assert "repeats: 1\n" in text  # a default, written out


TEXT = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(
    ["no", "on", "1e-3", "1e3", "~", "", " a", "a: b", "- a", "0x1F", "012", "1_000", "12:30", "2024-01-01", "<<", "=",
     "a #b", "#", "[", "'", '"', "!x", "&a", "*a", "%", "|", "\n", "a\n\nb\n", "\t", "\x85", "\u2028", "\ufeff", "true"]
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(name=TEXT.filter(lambda text: "/" not in text), words=st.lists(TEXT, min_size=1, max_size=4), rate=st.floats())
def test_every_text_survives_writing_and_reading(name: str, words: list[str], rate: float) -> None:
    if not 0 <= abs(rate) < float("inf"):
        rate = 0.0
    recipe = Order(name=name, rate=rate, adapter=Thin(layers=tuple(words)), weights=dict.fromkeys(words, 1.0))
    assert read(write_settings(recipe)) == recipe
    assert read(f"name: {inline(name)}\nadapter: {{kind: thin, layers: {inline([*words])}}}\n").name == name


def test_orders_are_laid_over_the_file() -> None:
    recipe = read(
        FULL,
        "data.sources.0.repeats=2",
        "data.sources.2={kind: folder, path: third}",
        "adapter={kind: thin, rank: 5}",
        "adapter.layers.1=more",
        "data.trigger=on",
        "weights.c=3",
        "size.0=640",
        "cache=false",
        "second=null",
        "rate=5e-4",
        "rate=6e-4",
    )
    assert recipe.data is not None
    assert [(source.path.name, source.repeats) for source in recipe.data.sources] == [
        ("blob", 2),
        ("other", 1),
        ("third", 1),
    ]
    assert recipe.adapter == Thin(rank=5, layers=("attention", "more"))
    assert (recipe.data.trigger, recipe.size, recipe.cache, recipe.second, recipe.rate) == (
        "on",
        (640, 768),
        False,
        None,
        6e-4,
    )
    assert recipe.weights == {"a": 1.0, "b": 0.5, "c": 3.0}


def test_orders_change_the_default_where_the_file_is_silent() -> None:
    assert read("name: x", "adapter.dropout=0.5").adapter == Thin(rank=32, dropout=0.5)
    assert read("name: x", "adapter.kind=thick").adapter == Thick()
    assert read("name: x\nadapter: {dropout: 0.5}").adapter == Thin(rank=32, dropout=0.5)
    assert read("name: x\nadapter: {kind: thick, rank: 3}", "adapter.kind=thin").adapter == Thin(rank=3)
    assert read("name: x", "trackers.0={kind: thin}", "trackers.0.rank=2").trackers == (Thin(rank=2),)
    assert read("name: x\ndata:", "data.sources=[{path: a}]").data == Data(sources=(Folder(path=Path("a")),))


@pytest.mark.parametrize(
    ("text", "what", "where", "mend"),
    [
        ("stpes: 3", "There is no key `stpes`.", "recipes/x.yaml:2 (stpes)", "Did you mean `steps`?"),
        ("rank: 3", "There is no key `rank`.", "recipes/x.yaml:2 (rank)", "Did you mean `adapter.rank`?"),
        (
            "adapter:\n  kind: thick\n  rnk: 3",
            "There is no key `adapter.rnk` for kind `thick`.",
            "recipes/x.yaml:4 (adapter.rnk)",
            "Did you mean `rank`? Known here: kind, rank.",
        ),
        (
            "adapter: {rank: eight}",
            '`adapter.rank` must be a whole number above 0, but is the text "eight".',
            "recipes/x.yaml:2 (adapter.rank)",
            "See `trainer explain adapter.rank`.",
        ),
        (
            "adapter: {rank: '8'}",
            '`adapter.rank` must be a whole number above 0, but is the text "8".',
            "recipes/x.yaml:2 (adapter.rank)",
            "Remove the quotes.",
        ),
        (
            "adapter: {dropout: 1}",
            "`adapter.dropout` must be a number of at least 0 and below 1, but is the number 1.",
            "recipes/x.yaml:2 (adapter.dropout)",
            "See `trainer explain adapter.dropout`.",
        ),
        (
            "adapter: {kind: thik}",
            "`adapter` has no kind `thik`.",
            "recipes/x.yaml:2 (adapter)",
            "Did you mean `thick`? Known here: thin, thick.",
        ),
        ("trackers: [{rank: 2}]", "`trackers.0` needs a `kind`.", "recipes/x.yaml:2 (trackers.0)", "thin, thick."),
        (
            "data:\n  sources:\n    - repeats: 3",
            "The key `data.sources.0.path` is missing.",
            "recipes/x.yaml:4 (data.sources.0.path)",
            "Write it: a path.",
        ),
        (
            "precision: bf16",
            '`precision` must be `float32` or `bfloat16`, but is the text "bf16".',
            "recipes/x.yaml:2 (precision)",
            "Did you mean `bfloat16`?",
        ),
        (
            "data: {sources: [], flip: yes}",
            '`data.flip` must be true or false, but is the text "yes".',
            "recipes/x.yaml:2 (data.flip)",
            "Write true or false.",
        ),
        (
            "steps: true",
            "`steps` must be a whole number above 0, but is `true`.",
            "recipes/x.yaml:2 (steps)",
            "explain",
        ),
        ("steps: 2.5", "must be a whole number above 0, but is the number 2.5.", "recipes/x.yaml:2 (steps)", "explain"),
        ("steps:", "`steps` must be a whole number above 0, but is empty.", "recipes/x.yaml:2 (steps)", "remove"),
        ("rate: .inf", "`rate` must be a finite number, but is the number inf.", "recipes/x.yaml:2 (rate)", "number"),
        (
            "size: big",
            "`size` must be a whole number or a list of 2: a whole number, a whole number, but is the text",
            "recipes/x.yaml:2 (size)",
            "See `trainer explain size`.",
        ),
        ("size: [1, a]", "`size` must be a whole number or a list of 2", "recipes/x.yaml:2 (size)", "explain"),
        (
            "cache: {rnk: 3}",
            "There is no key `cache.rnk` for kind `thick`.",
            "recipes/x.yaml:2 (cache.rnk)",
            "Did you mean `rank`?",
        ),
        ("weights: {a: b}", '`weights.a` must be a number, but is the text "b".', "(weights.a)", "explain"),
        ("trackers: thin", "`trackers` must be a list, each a block with a `kind`", "(trackers)", "a list in brackets"),
        ("steps: 13", "Thirteen steps bring bad luck.", "recipes/x.yaml (steps)", "Take 14."),
        ("steps: 5\nsteps: 6", "The key `steps` is given twice.", "recipes/x.yaml:3 (steps)", "the first is in line 2"),
        ("rate: &a 3\nsteps: *a", "The alias `*a` is refused.", "recipes/x.yaml:3 (steps)", "Write the value out."),
        ("runs: !!python/name:os.system x", "The tag `!!python/name:os.system` is refused.", ":2 (runs)", "Remove"),
        ("? [a]\n: b", "A key must be a word.", "recipes/x.yaml:2", "quote"),
        ("---\nname: y", "A second document begins here.", "recipes/x.yaml:2", "Write one document"),
    ],
)
def test_one_mistake_is_told_with_place_and_cure(text: str, what: str, where: str, mend: str) -> None:
    found = only_mistake(f"name: x\n{text}\n")
    assert what in found[0]
    assert where in found[1]
    assert mend in found[2]


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("", "The recipe is empty.", "recipes/x.yaml"),
        ("# only words\n", "The recipe is empty.", "recipes/x.yaml"),
        ("- a\n", "The recipe is no block of keys.", "recipes/x.yaml"),
        ("a: b: c", "This is no YAML: mapping values", "recipes/x.yaml:1"),
        ("name: x\nsize: [1, 2\nrate: 3\n", "This is no YAML: ", "recipes/x.yaml:2"),
        ("name: 'x\nrate: 3\n", "This is no YAML: ", "recipes/x.yaml:1"),
        ("name: x\ndata:\n\tflip: true\n", "This is no YAML: ", "recipes/x.yaml:3"),
        ("name: \x07", "This is no YAML: it holds control characters.", "recipes/x.yaml:1"),
        ("steps: 3", "The key `name` is missing.", "recipes/x.yaml (name)"),
        ("name: 12", "`name` must be text, but is the number 12.", "recipes/x.yaml:1 (name)"),
        ("name: a/b", "The name a/b is a path.", "recipes/x.yaml:1 (name)"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_so(text: str, what: str, where: str) -> None:
    found = only_mistake(text)
    assert found[0].startswith(what)
    assert found[1] == where


@pytest.mark.parametrize(
    ("order", "what", "mend"),
    [
        ("steps", "This is no KEY=VALUE.", "adapter.rank=8"),
        ("=3", "This is no KEY=VALUE.", "adapter.rank=8"),
        ("a..b=3", "This is no KEY=VALUE.", "adapter.rank=8"),
        ("name={", "This is no YAML", "name='\"…\"'"),
        ("name=a: b", "`name` must be text, but is a block of keys.", "explain"),
        ("name=a: b: c", "This is no YAML", "name='\"…\"'"),
        ("name=\udcff", "This holds bytes that are no UTF-8.", "name='\"…\"'"),
        ("stpes=3", "There is no key `stpes`.", "Did you mean `steps`?"),
        ("steps=many", '`steps` must be a whole number above 0, but is the text "many".', "explain"),
        ("steps.x=3", "`steps` must be a whole number above 0, but is a block of keys.", "explain"),
        ("name.x=3", "`name` is no block of keys.", "name=VALUE"),
        ("trackers.rank=3", "`trackers` is a list.", "trackers.0.rank=VALUE"),
        ("trackers.1.rank=3", "`trackers` has no entry number 1.", "trackers.0=VALUE"),
        ("adapter.layers.5=x", "`adapter.layers` has no entry number 5.", "adapter.layers.1=VALUE"),
        ("adapter.rank=0", "`adapter.rank` must be a whole number above 0, but is the number 0.", "explain"),
        ("adapter.kind=thik", "`adapter` has no kind `thik`.", "Did you mean `thick`?"),
    ],
)
def test_a_wrong_order_is_told_with_its_own_words(order: str, what: str, mend: str) -> None:
    found = only_mistake("name: x", order)
    assert found[0].startswith(what)
    assert found[1].endswith(" on the command line")
    assert found[1].startswith(order.encode("unicode_escape").decode())
    assert mend in found[2]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = "name: 3\nstpes: 1\nadapter: {kind: thn}\ntrackers:\n  - kind: thin\n    rank: -1\nrate: fast\nrate: slow\n"
    found = mistakes(text, "steps=0", "nonsense")
    assert [where for _, where, _ in found] == [
        "nonsense on the command line",
        "steps=0 on the command line",
        "recipes/x.yaml:1 (name)",
        "recipes/x.yaml:2 (stpes)",
        "recipes/x.yaml:3 (adapter)",
        "recipes/x.yaml:6 (trackers.0.rank)",
        "recipes/x.yaml:8 (rate)",
    ]


def test_the_message_lists_every_mistake_as_what_where_mend() -> None:
    with pytest.raises(RecipeError) as raised:
        read("name: x\nstpes: 1\nrate: fast\n")
    assert str(raised.value) == (
        "recipes/x.yaml has 2 mistakes.\n\n"
        "There is no key `stpes`.\n"
        "  where: recipes/x.yaml:2 (stpes)\n"
        "  mend:  Did you mean `steps`? Known here: name, precision, adapter, second, data, rate, steps, size, cache, "
        "trackers, weights, runs, beta.\n\n"
        '`rate` must be a number, but is the text "fast".\n'
        "  where: recipes/x.yaml:3 (rate)\n"
        "  mend:  See `trainer explain rate`."
    )
    assert raised.value.exit_code == 2


def test_what_a_file_holds_cannot_paint_the_terminal() -> None:
    with pytest.raises(RecipeError) as raised:
        read('name: x\n"\\e[31m": 1\nsteps: "\\e[2J\\u202e"\n')
    assert "\x1b" not in str(raised.value)
    assert "\u202e" not in str(raised.value)
    assert "\\x1b[2J" in str(raised.value)


def test_environment_variables_stay_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "7")
    assert read("name: ${STEPS} $STEPS %STEPS% {{STEPS}}").name == "${STEPS} $STEPS %STEPS% {{STEPS}}"
