"""Scoring: other people's models (a hub series, a GGUF file), several seeds, and what is said of the null."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from run_command import copyscope
from safetensors.torch import load_file, save_file
from tiny_series import add_checkpoint
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from copyscope.analyses.commands.measuring import score_lines
from copyscope.analyses.formation.nulls import above_null
from copyscope.analyses.tables import scores
from copyscope.analyses.tables.measure_names import (
    ALL_MEASURES,
    CONCEPT_COPYING,
    DEFAULT_MEASURES,
    OF_MODEL,
    SUCCESSOR,
    chosen_measures,
)
from copyscope.analyses.tables.opening import open_run, write_about
from copyscope.analyses.tables.run import read_failed, read_tables
from copyscope.analyses.tables.run_prompts import run_prompts
from copyscope.analyses.tables.scores import Scorer, score
from copyscope.analyses.tables.stored import SCORES_VERSION, computed_with
from copyscope.interp.models.vocabulary import vocabulary_of
from copyscope.training.errors import InputError


def tiny(folder: Path, seed: int, **changes: Any) -> Path:
    torch.manual_seed(seed)
    size: dict[str, Any] = {"vocab_size": 200, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 128}
    fields: dict[str, Any] = size | heads | changes
    config = LlamaConfig(**fields, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the hub: revisions step1 and step8 of one model."""
    for step in (1, 8):
        tiny(tmp_path / "hub" / f"step{step}", step)

    def download(name: str, revision: str, **_: object) -> str:
        folder = tmp_path / "hub" / revision
        if name != "lab/model" or not folder.is_dir():
            raise OSError("404")
        return str(folder)

    def info(_: object, name: str, revision: str) -> SimpleNamespace:
        return SimpleNamespace(sha=Path(download(name, revision)).name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_hub_series_is_scored_into_a_folder_of_its_own(hub: Path, logged: list[str]) -> None:
    result = score("lab/model@step8,step1", ["previous_token"])
    assert sorted(result.heads["step"].unique()) == [1, 8]
    assert (hub / "runs/lab--model/results/heads/step00000008.parquet").is_file()
    assert open_run("lab/model@step8,step1").name == "lab--model"
    assert [line.partition(" (")[0] for line in logged] == ["logits checked against transformers at 2 checkpoints"]
    local = score(str(hub / "hub"), ["previous_token"])
    assert local.heads["value"].to_list() == pytest.approx(result.heads["value"].to_list())
    assert score("lab/model@step8,step1", ["previous_token"]).heads.equals(result.heads)
    assert len(logged) == 2  # nothing computed again


def test_what_the_hub_does_not_have(hub: Path) -> None:
    with pytest.raises(InputError, match="@step2") as error:
        score("lab/model@step2", ["previous_token"])
    assert "\n" not in str(error.value)


CHANGES = {
    "rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "heads": {"num_key_value_heads": 1},
    "vocabulary": {"vocab_size": 203},
    "context": {"max_position_embeddings": 160},
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_checkpoint_is_loaded_by_its_own_config(what: str, tmp_path: Path) -> None:
    """And prompts are what all of them can take, whichever is scored first."""
    for step, changes in ((1, {}), (2, CHANGES[what]), (3, {})):
        tiny(tmp_path / "a" / f"step{step}", step, **changes)
    whole = score(tmp_path / "a", ["previous_token"]).heads
    assert sorted(whole["step"].unique()) == [1, 2, 3]
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns("results"))
    score(tmp_path / "b", ["previous_token"], [2])
    turned = score(tmp_path / "b", ["previous_token"]).heads
    assert turned["value"].to_list() == whole["value"].to_list()


def values(folder: Path, step: int) -> list[float]:
    return pl.read_parquet(folder / "results" / "heads" / f"step{step:08}.parquet")["value"].to_list()


def spoil(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "no weights":
        weights.unlink()
    elif how == "cut off":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif how == "no config":
        (folder / "config.json").unlink()
    else:
        tensors = load_file(weights)
        tensors["model.norm.weight"][0] = float("nan")
        save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(("how", "bad"), [("no weights", 1), ("cut off", 2), ("no config", 1), ("NaN", 3)])
def test_one_bad_checkpoint_stops_nothing(
    how: str, bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 3):
        tiny(tmp_path / f"step{step}", step)
    shutil.copytree(tmp_path / f"step{bad}", tmp_path / "whole")
    spoil(tmp_path / f"step{bad}", how)
    shutil.move(tmp_path / "whole", tmp_path.parent / f"{tmp_path.name}-whole")
    options = ("--measures", "previous_token", "--samples", "20")
    assert copyscope(monkeypatch, "score", str(tmp_path), *options) == 1
    assert sum(f"step{bad}" in line for line in capsys.readouterr().err.splitlines()) == 1
    assert sorted(read_tables(open_run(tmp_path), "heads")["step"].unique()) == [s for s in (1, 2, 3) if s != bad]
    assert list(read_failed(open_run(tmp_path))) == [bad]
    assert copyscope(monkeypatch, "score", str(tmp_path), *options, "--steps", "1,2,3", "--quiet") == 1
    assert f"step{bad}" in capsys.readouterr().err
    shutil.rmtree(tmp_path / f"step{bad}")
    shutil.move(tmp_path.parent / f"{tmp_path.name}-whole", tmp_path / f"step{bad}")
    assert copyscope(monkeypatch, "score", str(tmp_path), *options) == 0
    assert read_failed(open_run(tmp_path)) == {}


def test_all_bad_is_bad_input(tmp_path: Path) -> None:
    for step in (1, 2):
        spoil(tiny(tmp_path / f"step{step}", step), "no weights")
    with pytest.raises(InputError, match="all 2 checkpoints"):
        score(tmp_path, ["previous_token"])


def tokenizer(folder: Path, bos: bool = True) -> None:
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(200)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1" if bos else None).save_pretrained(folder)


def test_checkpoints_without_a_tokenizer_take_that_of_the_series(tmp_path: Path) -> None:
    """The same numbers in every order, as where all have it."""
    for name in ("all", "late"):
        for step in (1, 2, 3):
            tiny(tmp_path / name / f"step{step}", step)
            if name == "all" or step > 1:
                tokenizer(tmp_path / name / f"step{step}")
    wanted = score(tmp_path / "all", ["previous_token"]).heads["value"].to_list()
    shutil.move(tmp_path / "late" / "step1", tmp_path / "kept")
    score(tmp_path / "late", ["previous_token"])
    shutil.move(tmp_path / "kept", tmp_path / "late" / "step1")
    assert score(tmp_path / "late", ["previous_token"]).heads["value"].to_list() == wanted
    facts = computed_with(tmp_path / "late" / "results" / "heads" / "step00000001.parquet")
    assert facts["vocabulary"]["bos_token"] == "w1"
    # without any: other prompts, and with a tokenizer named for all the same again
    for step in (2, 3):
        for file in (tmp_path / "late" / f"step{step}").glob("*token*"):
            file.unlink()
    assert score(tmp_path / "late", ["previous_token"]).heads["value"].to_list() != wanted
    run = open_run(tmp_path / "late", tokenizer=tmp_path / "all" / "step1")
    assert score(run, ["previous_token"]).heads["value"].to_list() == wanted
    assert score(tmp_path / "late", ["previous_token"]).heads["value"].to_list() == wanted  # noted beside the results


def change(folder: Path, what: str) -> None:
    if what == "weights in shards":
        LlamaForCausalLM.from_pretrained(folder.parent / "other").save_pretrained(folder, max_shard_size="20KB")
    elif what == "config":
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))
    else:
        tokenizer(folder)


@pytest.mark.parametrize("what", ["weights in shards", "config", "tokenizer"])
def test_what_changed_is_scored_anew(what: str, tmp_path: Path) -> None:
    folder = tiny(tmp_path / "s" / "step1", 1)
    model = LlamaForCausalLM.from_pretrained(folder)
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="20KB")
    tiny(tmp_path / "s" / "other", 2)
    score(folder, ["previous_token"])
    before = values(folder, 1)
    assert not Scorer(["previous_token"]).todo(open_run(folder), open_run(folder).series.checkpoints)
    change(folder, what)
    score(folder, ["previous_token"])
    after = values(folder, 1)
    assert after != before
    moved = Path(shutil.move(folder, tmp_path / "step1"))
    assert not Scorer(["previous_token"]).todo(open_run(moved), open_run(moved).series.checkpoints)


def test_sources_of_one_name_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny(tmp_path / "runs" / "demo" / "step0", 0)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "demo.gguf").write_bytes(place.encode())
    folders = [open_run(tmp_path / "runs" / "demo").folder]
    for place in ("a", "b"):
        run = open_run(f"{place}/demo.gguf")
        folders.append(run.folder)
        (run.folder / "results").mkdir(parents=True)
        write_about(run)
    assert len(set(folders)) == 3
    assert [open_run(f"{place}/demo.gguf").folder for place in ("a", "b")] == folders[1:]
    assert open_run(folders[1]).series.checkpoints[0].path.endswith("a/demo.gguf")


def test_results_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny(tmp_path / "s" / "beta", 0)
    tiny(tmp_path / "s" / "alpha", 1)
    with pytest.raises(InputError, match="alpha, beta"):
        open_run("s")
    options = ("--measures", "previous_token", "--samples", "20", "--out", "kept", "--order", "name")
    assert copyscope(monkeypatch, "score", "s", *options) == 0
    assert not (tmp_path / "s" / "results").exists()
    run = open_run("kept")  # where it came from, and in which order, is noted there
    assert [Path(c.path).name for c in run.series.checkpoints] == ["alpha", "beta"]
    assert sorted(run.heads["step"].unique()) == [0, 1]
    tiny(tmp_path / "t", 0)
    with pytest.raises(InputError, match="holds results of"):
        open_run("t", out=Path("kept"))
    with pytest.raises(InputError, match="is a run or a model itself"):
        open_run("t", out=Path("s/beta"))


def test_a_place_that_cannot_be_written_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("copyscope.analyses.tables.loading.load_hooked", None)  # nothing is computed
    tiny(tmp_path / "step1", 0)
    (tmp_path / "results").write_text("a file")
    with pytest.raises(InputError, match="--out"):
        score(tmp_path, ["previous_token"])


def test_scores_stay_when_a_checkpoint_goes(tmp_path: Path, logged: list[str]) -> None:
    for step in (1, 2):
        tiny(tmp_path / f"step{step}", step)
    score(tmp_path, ["previous_token"])
    shutil.rmtree(tmp_path / "step1")
    assert sorted(score(tmp_path, ["previous_token"]).heads["step"].unique()) == [1, 2]
    assert sum("gone" in line for line in logged) == 1


def test_scores_by_earlier_definitions_are_made_again_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    for step in (1, 2):
        tiny(tmp_path / f"step{step}", step)
    with monkeypatch.context() as earlier:
        earlier.setattr(scores, "SCORES_VERSION", SCORES_VERSION - 1)
        score(tmp_path, ["previous_token"])
    tables = sorted((open_run(tmp_path).folder / "results" / "heads").glob("*.parquet"))
    assert [computed_with(path)["version"] for path in tables] == [SCORES_VERSION - 1] * 2
    score(tmp_path, ["previous_token"])
    assert [computed_with(path)["version"] for path in tables] == [SCORES_VERSION] * 2
    assert [line.split()[0] for line in logged if "definitions" in line] == ["2"]


def test_all_measures_are_kept_where_fewer_are_asked_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(tmp_path / "step1", 1)
    run = open_run(tmp_path)
    whole = score(tmp_path, ["all"], samples=10)
    names = set(whole.heads["measure"])
    no_tokenizer = {*SUCCESSOR, *CONCEPT_COPYING}
    assert names == {*ALL_MEASURES} - {*OF_MODEL, *no_tokenizer} > {*DEFAULT_MEASURES}
    assert not (whole.model["measure"] == "natural_kl_bigram").any()  # its text is not known
    assert whole.model.filter(measure="copying_mean_rank")["value"].item() >= 1
    fewer = Scorer(None, samples=10)
    assert not fewer.todo(run, run.series.checkpoints)
    assert Scorer(None, samples=11).todo(run, run.series.checkpoints)
    score(tmp_path, ["previous_token"], samples=11)
    assert fewer.todo(run, run.series.checkpoints)
    assert Scorer(["previous_token", "retrieval_score"], samples=11).todo(run, run.series.checkpoints)
    assert copyscope(monkeypatch, "score", str(tmp_path), "--measures", "retrieval") == 2
    for name in ("successor_score", "concept_copying", "natural_kl_bigram"):
        with pytest.raises(InputError, match=f"measure {name}: needs"):
            score(tmp_path, [name], samples=10)
    assert chosen_measures(["copied_token_layer"]) == [*DEFAULT_MEASURES, "copied_token_layer"]


def test_no_head_is_strong_in_a_measure_without_an_upper_limit() -> None:
    rows = [("induction_logit_attribution", 2.54), ("induction_logit_attribution_null", 0.1)]
    rows += [("induction_logit_attribution_p", 0.001), ("retrieval_score", 0.8), ("retrieval_score_null", 0.0)]
    table = pl.DataFrame(
        [(5, 1, 0, *row) for row in [*rows, ("retrieval_score_p", 0.001)]],
        schema=["step", "layer", "head", "measure", "value"],
        orient="row",
    )
    above = above_null(table)
    assert dict(above.select("measure", "strong").rows()) == {
        "induction_logit_attribution": False,
        "retrieval_score": True,
    }
    unlimited, limited = score_lines(above, table)
    assert "L1H0 2.5" in unlimited
    assert "strong" not in unlimited
    assert "1 strong head of 1 (L1H0 0.80)" in limited


def test_several_seeds_are_taken_together(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", 0)
    alone = [score(folder, ["previous_token", "previous_token_se"], seeds=[seed]) for seed in (3, 4)]
    both = score(folder, ["previous_token", "previous_token_se"], seeds=[3, 4])

    def values(result: object, measure: str) -> list[float]:
        heads: pl.DataFrame = getattr(result, "heads")  # noqa: B009 # a NamedTuple, read by name
        return heads.filter(measure=measure).sort("layer", "head")["value"].to_list()

    means = [values(result, "previous_token") for result in alone]
    assert values(both, "previous_token") == pytest.approx([(a + b) / 2 for a, b in zip(*means, strict=True)], rel=1e-5)
    prompts = run_prompts(open_run(folder), 128, vocabulary_of(None, 200), [3, 4])
    single = run_prompts(open_run(folder), 128, vocabulary_of(None, 200), [4])
    assert len(prompts.test.tokens) == 2 * len(single.test.tokens)
    assert torch.equal(prompts.test.tokens[len(single.test.tokens) :], single.test.tokens)
    assert prompts.test.context.diff().min() == 0
    assert torch.equal(prompts.repeated[len(single.repeated) :], single.repeated)


def test_heads_above_their_null() -> None:
    rows = [
        (8, 0, 0, "previous_token", 0.9),
        (8, 0, 0, "previous_token_null", 0.1),
        (8, 0, 0, "previous_token_p", 0.001),
        (8, 0, 1, "previous_token", 0.5),
        (8, 0, 1, "previous_token_null", 0.4),
        (8, 0, 1, "previous_token_p", 0.2),
        (1, 0, 1, "previous_token_p", 0.001),
        (8, 1, 1, "induction_attention", 0.9),
    ]
    table = pl.DataFrame(rows, schema=["step", "layer", "head", "measure", "value"], orient="row")
    assert above_null(table).rows() == [("previous_token", 0, 0, 0.9, 0.1, 0.001, True)]


def test_the_next_files_are_hashed_while_a_gpu_computes(tmp_path, monkeypatch):
    for step in (1, 8, 64):
        add_checkpoint(tmp_path / "series", step)
    few = {"measures": ["previous_token"], "samples": 2, "device": "cpu"}
    wanted = score(open_run(tmp_path / "series", out=str(tmp_path / "plain")), **few).heads.drop("run")
    hashed: list[str] = []
    monkeypatch.setattr("copyscope.analyses.tables.loading.device_named", lambda name: torch.device("cuda"))
    monkeypatch.setattr("copyscope.analyses.tables.fetch_ahead.checkpoint_key", lambda one: hashed.append(one.label))
    got = score(open_run(tmp_path / "series", out=tmp_path / "ahead"), **few).heads.drop("run")
    assert got.equals(wanted)
    assert len(set(hashed)) == 2  # all but the first
