"""`route=capable` and `pipeline route train`: what is learned, kept, refused, and chosen."""

import asyncio
import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.route.capable import Capable, prompt_text
from pipeline_plugins.route.capable_curve import Curve, HeldOut, calibration_error
from pipeline_plugins.route.capable_data import DataError, read
from pipeline_plugins.route.capable_fit import (
    Prompts,
    Recipe,
    balanced,
    calibration,
    cross_fit,
    fit,
    folds,
    predict,
)
from pipeline_plugins.route.capable_store import ARRAYS, CARD, load
from pipeline_plugins.route.capable_text import MAX_CHARACTERS, excerpt, ngrams, shape
from pipeline_plugins.route.train import command
from pydantic import ValidationError

from pipeline import Call, Edge, Edges, Model, Price, Reply
from pipeline.cli.app import run
from pipeline.errors import ModelNotFound
from pipeline.kinds import Routed
from pipeline.problems import ConfigError

CHAT = frozenset({"chat", "completion"})
EASY = "please say hello to my {} friend"
HARD = "integrate the {} function and prove that it converges"
SMALL = Recipe(topics=4, waves=50)


def rows(count: int = 240) -> list[dict[str, Any]]:
    """Traffic whose hard half only the strong target can do; one row in ten is labelled at random."""
    chance = random.Random(1)
    made = []
    for at in range(count):
        hard = at % 2 == 1
        word = chance.choice(["red", "old", "nice", "odd", "kind", "wide"])
        noise = chance.random() < 0.1
        made.append(
            {
                "prompt": f"{(HARD if hard else EASY).format(word)} {at}",
                "large_right": 1,
                "small_right": chance.randint(0, 1) if noise else int(not hard),
                "topic": "hard" if hard else "easy",
            }
        )
    return made


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    if path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        return path
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router")
    result = CliRunner().invoke(
        command,
        [
            "train",
            str(write(folder / "data.csv.gz", rows())),
            "--out",
            str(folder),
            "--by",
            "topic",
            "--balance",
            "topic",
        ],
        catch_exceptions=False,
    )
    assert "CPT(80%)" in result.stdout
    return folder


def edges(**targets: Model) -> tuple[Edges, list[str]]:
    taken: list[str] = []
    made = {}
    for name, model in targets.items():

        async def answer(call: Call, name: str = name) -> Reply:
            taken.append(name)
            return Reply.of({})

        made[name] = Edge("route", name, name, answer)
        made[name].models = (model,)
    return Edges(made), taken


LARGE, SMALL_MODEL = (
    Model("l", CHAT, price=Price(10, 30)),
    Model("s", CHAT, price=Price(0.1, 0.3)),
)


def router(trained: Path, targets: Edges | None = None, **config: Any) -> Capable:
    targets = targets or edges(large=LARGE, small=SMALL_MODEL)[0]
    made = Capable(Capable.Config(model=trained, **config), targets)
    asyncio.run(made.open())
    return made


def ask(made: Capable, prompt: Any, model: str = "auto", operation: str = "chat") -> Call:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    call = Call(id="1", operation=operation, body=body, deadline=1e9, received=0)
    asyncio.run(made(call))  # type: ignore[arg-type]
    return call


def test_an_easy_prompt_goes_to_the_cheap_target_and_a_hard_one_to_the_strong(trained: Path) -> None:
    made = router(trained, quality=0.95)
    easy, hard = ask(made, EASY.format("new")), ask(made, HARD.format("new"))
    assert easy.record.headers == {"x-pipeline-route": "small"}
    assert hard.record.headers == {"x-pipeline-route": "large"}
    decision = hard.record.decision(Routed)
    assert decision is not None
    assert decision.target == "large"
    assert decision.reason == "expected quality 1.00"


def test_a_named_model_is_taken_whatever_the_prompt(trained: Path) -> None:
    made = router(trained)
    assert ask(made, EASY.format("x"), model="l").record.headers["x-pipeline-route"] == "large"
    assert ask(made, HARD.format("x"), model="s").record.headers["x-pipeline-route"] == "small"


def test_a_target_that_does_not_offer_the_call_is_not_taken(trained: Path) -> None:
    targets, taken = edges(large=Model("l", frozenset({"completion"}), price=Price(1, 1)), small=SMALL_MODEL)
    ask(router(trained, targets), HARD.format("x"))
    assert taken == ["small"]


def test_an_operation_without_quality_goes_where_it_is_done(trained: Path) -> None:
    embed = Model("e", frozenset({"embedding"}))
    targets, taken = edges(large=LARGE, small=SMALL_MODEL, embed=embed)
    ask(router(trained, targets), "hello", model="default", operation="embedding")
    assert taken == ["embed"]


def test_one_target_that_chats_is_no_choice(trained: Path) -> None:
    targets, _ = edges(large=LARGE, embed=Model("e", frozenset({"embedding"})))
    with pytest.raises(ConfigError, match=r"it needs at least two targets that chat"):
        router(trained, targets)


def test_a_model_that_nobody_has_is_told(trained: Path) -> None:
    with pytest.raises(ModelNotFound, match="Available: l, s"):
        ask(router(trained), "hello", model="gpt")


def test_a_call_without_text_goes_to_the_cheapest(trained: Path) -> None:
    made = router(trained)
    assert ask(made, [{"type": "image_url", "image_url": {}}]).record.headers["x-pipeline-route"] == "small"


def test_a_very_long_prompt_is_decided_as_well(trained: Path) -> None:
    assert ask(router(trained), HARD.format("long") * 5000).record.headers["x-pipeline-route"] == "large"


@settings(deadline=None, max_examples=50)
@given(words=st.text(max_size=200), low=st.floats(0, 1), high=st.floats(0, 1))
def test_more_quality_asked_for_never_moves_a_prompt_to_a_cheaper_target(
    trained: Path, words: str, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    less, more = router(trained, quality=low), router(trained, quality=high)
    assert more.rate <= less.rate
    costs = {"large": 20.0, "small": 0.2}
    both = ["large", "small"]
    assert costs[more.choose(words, both).target] >= costs[less.choose(words, both).target]


def test_the_asked_for_quality_holds_on_held_out_rows_at_the_least_cost(trained: Path) -> None:
    _, held_out, card = load(trained, "model")
    costs = np.array([20.0, 0.2])
    strongest = held_out.right.mean(axis=0).max()
    assert card.targets == ["large", "small"]
    for share in (0.6, 0.8, 0.9, 0.95):
        rate = held_out.rate_for_quality(share, costs)
        quality, cost = held_out.routed(rate, costs)
        assert quality >= share * strongest
        assert cost < 20
    assert held_out.routed(held_out.rate_for_quality(0.1, costs), costs)[1] == pytest.approx(0.2)


def test_a_cost_ceiling_is_kept_on_held_out_rows(trained: Path) -> None:
    made = router(trained, cost_ceiling=5)
    quality, cost = load(trained, "model")[1].routed(made.rate, np.array([20.0, 0.2]))
    assert cost <= 5
    assert quality > 0.6
    with pytest.raises(ConfigError, match=r"^cost_ceiling: the cheapest target costs 0.2"):
        router(trained, cost_ceiling=0.1)


def test_quality_and_a_cost_ceiling_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="not both"):
        Capable.Config(model=Path("x"), quality=0.9, cost_ceiling=1)


def test_a_cost_ceiling_is_an_override_like_any_other(capfd: pytest.CaptureFixture[str]) -> None:
    pair = ["graph=pair", "infer@small=echo", "infer@large=echo", "infer@embed=none", "large.name=large"]
    asked = [*pair, "route=capable", "route.model=x", "route.cost_ceiling=5"]
    assert run(["check", *asked]) == 0
    assert run(["check", *asked, "route.quality=0.9"]) == 2
    assert "not both" in capfd.readouterr().err


def test_three_targets_are_weighed_by_their_prices() -> None:
    estimates = np.array([[0.9, 0.8, 0.3], [0.9, 0.85, 0.85]])
    held_out = HeldOut(estimates, np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    costs = np.array([10.0, 1.0, 0.1])
    quality, cost = held_out.routed(held_out.rate_for_quality(1.0, costs), costs)
    assert (quality, cost) == (1.0, pytest.approx(0.55))


def test_targets_may_have_other_names_than_in_training(trained: Path) -> None:
    targets, taken = edges(big=LARGE, tiny=SMALL_MODEL)
    with pytest.raises(ConfigError, match=r"^trained_as.big: the estimator knows no target `big`"):
        router(trained, targets)
    ask(router(trained, targets, trained_as={"big": "large", "tiny": "small"}), HARD.format("x"))
    assert taken == ["big"]


def test_an_unknown_price_is_asked_for(trained: Path) -> None:
    targets, taken = edges(large=LARGE, small=Model("s", CHAT))
    with pytest.raises(ConfigError, match=r"^costs.small: the price of this target is not known"):
        router(trained, targets)
    ask(router(trained, targets, costs={"small": 0}), EASY.format("x"))
    assert taken == ["small"]


def test_a_missing_estimator_is_a_config_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model: .*`pipeline route train DATA"):
        router(tmp_path / "none")


def test_what_is_saved_gives_the_same_estimates_and_says_where_it_is_from(trained: Path) -> None:
    estimator, held_out, card = load(trained, "model")
    labelled = read(trained / "data.csv.gz")
    prompts = Prompts.read(labelled.prompts)
    again = fit(prompts, np.array(labelled.right), labelled.targets, Recipe(), 0)
    fresh = np.clip(estimator.offset + estimator.slope * predict(again, prompts), 0, 1)
    saved = np.array([estimator.estimate(prompt) for prompt in labelled.prompts])
    assert np.allclose(saved, fresh, atol=2e-3)
    assert card.provenance.rows == len(held_out.right) == 240
    assert card.provenance.data_sha256 == labelled.sha256
    assert card.provenance.recipe["balance"] == "topic"
    assert card.provenance.metrics["curves"]["all"]["apgr"] > 0.6
    assert sorted(path.name for path in trained.iterdir()) == ["curve.svg", "data.csv.gz", CARD, ARRAYS]


def copy(trained: Path, to: Path) -> Path:
    for name in (ARRAYS, CARD):
        (to / name).write_bytes((trained / name).read_bytes())
    return to


def test_a_changed_byte_is_refused(trained: Path, tmp_path: Path) -> None:
    damaged = bytearray((copy(trained, tmp_path) / ARRAYS).read_bytes())
    damaged[-5] ^= 1
    (tmp_path / ARRAYS).write_bytes(damaged)
    with pytest.raises(ConfigError, match="digest differs"):
        load(tmp_path, "model")


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("kernel", np.zeros((3, 2), np.float32), "`kernel` has the shape"),
        ("mean", np.array([np.nan, 0], np.float32), "no number"),
        ("features.vocabulary", np.zeros(0, np.uint32), "has the shape"),
        ("more", np.zeros(1, np.float32), "its arrays are"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    trained: Path, tmp_path: Path, name: str, array: Any, says: str
) -> None:
    from hashlib import sha256

    from safetensors.numpy import load_file
    from safetensors.numpy import save as to_bytes

    data = to_bytes({**load_file(copy(trained, tmp_path) / ARRAYS), name: array})
    card = json.loads((tmp_path / CARD).read_text())
    (tmp_path / ARRAYS).write_bytes(data)
    (tmp_path / CARD).write_text(json.dumps({**card, "sha256": sha256(data).hexdigest()}))
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, "model")


def test_a_card_that_is_none_is_refused(trained: Path, tmp_path: Path) -> None:
    (copy(trained, tmp_path) / CARD).write_text('{"format": 2}')
    with pytest.raises(ConfigError, match="can't be used"):
        load(tmp_path, "model")


def test_a_pickle_in_the_arrays_place_is_never_run(trained: Path, tmp_path: Path) -> None:
    import pickle
    from hashlib import sha256

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    data = pickle.dumps(Evil())
    card = json.loads((copy(trained, tmp_path) / CARD).read_text())
    (tmp_path / ARRAYS).write_bytes(data)
    (tmp_path / CARD).write_text(json.dumps({**card, "sha256": sha256(data).hexdigest()}))
    with pytest.raises(ConfigError, match="damaged"):
        load(tmp_path, "model")
    assert not (tmp_path / "ran").exists()


def test_estimates_on_held_out_rows_are_calibrated_and_rank_the_gain() -> None:
    made = rows(400)
    prompts = Prompts.read([row["prompt"] for row in made])
    right = np.array([[row["large_right"], row["small_right"]] for row in made], float)
    fold = folds([row["prompt"] for row in made], 4, 0)
    crossed = cross_fit(prompts, right, ["large", "small"], fold, SMALL)
    slope, offset = calibration(crossed, right)
    small = offset[1] + slope[1] * crossed[:, 1]
    assert calibration_error(small, right[:, 1]) < 0.05
    assert Curve.of(crossed[:, 0] - crossed[:, 1], right[:, 0], right[:, 1]).apgr > 0.65


def test_balance_weighs_a_row_by_the_root_of_how_rare_its_group_is() -> None:
    assert balanced(["often"] * 100 + ["rare"]).tolist() == [1.0] * 100 + [10.0]
    assert balanced(["a", "b"]).tolist() == [1.0, 1.0]


def test_what_rare_prompts_teach_counts_for_more_when_balanced() -> None:
    often, rare = (
        [f"add the red numbers {n}" for n in range(300)],
        [f"add the old taxes {n}" for n in range(6)],
    )
    prompts = Prompts.read(often + rare)
    right = np.array([[1, 0]] * len(often) + [[0, 1]] * len(rare), float)
    weights = balanced(["often"] * len(often) + ["rare"] * len(rare))
    learned = [
        predict(fit(prompts, right, ["large", "small"], SMALL, 0, each), prompts)[-len(rare) :, 1]
        for each in (None, weights)
    ]
    assert learned[1].min() > learned[0].max()


def test_apgr_and_cpt_of_rankings_that_can_be_done_by_hand() -> None:
    strong, weak = np.ones(4), np.array([0.0, 1.0, 0.0, 1.0])
    best = Curve.of(strong - weak, strong, weak)
    assert (best.apgr, best.cpt(0.5), best.cpt(0.8)) == (0.75, 0.25, 0.5)
    worst = Curve.of(weak - strong, strong, weak)
    assert (worst.apgr, worst.cpt(0.5), worst.cpt(1.0)) == (0.25, 0.75, 1.0)
    assert best.at(0.5) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no better"):
        Curve.of(weak, weak, strong)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=50), st.integers(2, 6))
def test_rows_of_one_group_share_a_fold(groups: list[str], count: int) -> None:
    fold = folds(groups, count, 0)
    for group in set(groups):
        assert len({fold[at] for at, own in enumerate(groups) if own == group}) == 1


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    read_numbers = shape(excerpt(text))
    assert np.all(np.isfinite(read_numbers))
    assert len(read_numbers) == len(shape(""))
    hashes = ngrams(text)
    assert np.all(hashes[1:] > hashes[:-1])


def test_reading_is_bounded_and_blind_to_case_and_digits() -> None:
    assert len(excerpt("x" * 10**6)) <= MAX_CHARACTERS + 1
    assert np.array_equal(ngrams("Add 12 and 34"), ngrams("add 98 AND 76"))


@pytest.mark.parametrize(
    ("operation", "body", "text"),
    [
        (
            "chat",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "a",
        ),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "a"),
        ("chat", {"messages": [{"role": "system", "content": "a"}]}, ""),
        ("chat", {"messages": "a"}, ""),
        ("completion", {"prompt": "a"}, "a"),
        ("completion", {"prompt": [1, 2]}, ""),
    ],
)
def test_the_last_thing_that_the_user_says_is_judged(operation: str, body: dict[str, Any], text: str) -> None:
    assert prompt_text(Call(id="1", operation=operation, body=body, deadline=0, received=0)) == text


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    ours = [read(write(tmp_path / name, rows(60))) for name in ("a.csv", "a.csv.gz", "a.jsonl")]
    assert ours[0].prompts == ours[1].prompts == ours[2].prompts
    assert ours[0].right == ours[1].right == ours[2].right
    assert ours[0].targets == ["large", "small"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "x", "must end in `.csv`"),
        ("a.csv", "question,strong_right\nx,1\n", "its columns are `question`, `strong_right`. Expected"),
        ("a.csv", "prompt,a_right,b_right\nx,1,0\n", "it has 1 rows"),
        ("a.csv", "prompt,a_right,b_right\n" + "x,1,0\n" * 60 + "y,2,0\n", "line 62: `a_right` is '2'"),
        ("a.csv", "prompt,a_right,b_right\n" + "x,1,0\n" * 60 + "y,1\n", "line 62: `b_right` is missing"),
        ("a.csv", "prompt,a_right,b_right\n" + "x,1,0\n" * 60 + ",1,0\n", "line 62: `prompt` is empty"),
        ("a.jsonl", "{\n", "line 1 is no JSON"),
        ("a.jsonl", "[]\n", "line 1 is no JSON object"),
        (
            "a.jsonl",
            '{"prompt": "x", "a_right": ' + "1" * 5000 + "}\n",
            "line 1 has a number that is too long",
        ),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1 has a number that is too long, or is nested too deeply"),
        ("a.jsonl", '{"prompt": 3, "a_right": 1, "b_right": 0}\n' * 50, "line 1: `prompt` is no text"),
        ("a.csv", "prompt,a_right,b_right\n", "it has no rows"),
        ("a.csv", "prompt,a_right,b_right,a_right\n", "two columns are called `a_right`"),
        ("a.csv", "prompt,a_right,b_right\n" + "x,1,0\n" * 60, "all prompts are equal"),
    ],
)
def test_mistakes_in_the_data_are_told_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    assert run(["route", "train", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_column_of_one_value_keeps_nothing_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "a.csv"
    data.write_text("prompt,a_right,b_right,set\n" + "".join(f"{n},1,0,one\n" for n in range(60)))
    assert run(["route", "train", str(data), "--apart", "set", "--out", str(tmp_path / "out")]) == 2
    assert "all rows have the same `set`" in " ".join(capsys.readouterr().err.split())


def test_a_fold_that_leaves_one_prompt_to_learn_from_is_fitted_all_the_same(tmp_path: Path) -> None:
    data = tmp_path / "a.csv"
    data.write_text("prompt,a_right,b_right,set\n" + "".join(f"p {n},1,{n % 2},{n > 0}\n" for n in range(60)))
    assert run(["route", "train", str(data), "--apart", "set", "--out", str(tmp_path / "out")]) == 0


def test_a_prompt_in_csv_may_be_as_long_as_a_context_window(tmp_path: Path) -> None:
    data = write(tmp_path / "a.csv", rows(60))
    with data.open("a") as file:
        file.write("word " * 40_000 + ",1,0" + "," * (data.read_text().splitlines()[0].count(",") - 2) + "\n")
    assert len(read(data).prompts[-1]) == 200_000


def test_a_folder_that_cant_be_written_to_is_told_before_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "a.csv", rows(60))
    for out in (data, data / "below"):
        assert run(["route", "train", str(data), "--out", str(out)]) == 2
        assert "fitting" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--by", "--apart", "--balance"])
def test_an_unknown_column_is_told_with_the_one_that_was_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    data = write(tmp_path / "a.csv", rows(60))
    assert run(["route", "train", str(data), option, "topics", "--out", str(tmp_path / "out")]) == 2
    assert "Did you mean `topic`?" in capsys.readouterr().err


def test_data_that_is_not_there_or_not_whole_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "none.csv")
    whole = write(tmp_path / "a.csv.gz", rows(60)).read_bytes()
    for damaged in (whole[:-20], whole[:30] + b"\xff" * 30 + whole[60:]):
        (tmp_path / "a.csv.gz").write_bytes(damaged)
        with pytest.raises(DataError, match="not whole"):
            read(tmp_path / "a.csv.gz")
