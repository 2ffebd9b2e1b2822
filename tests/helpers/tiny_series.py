"""Somebody's series in miniature: real checkpoints with a tokenizer, and planted tables beside them."""

from pathlib import Path

import numpy as np
import polars as pl
import torch
from synthetic_run import model_table, rise, series_table
from transformers import LlamaConfig, LlamaForCausalLM

from copyscope.analyses.page.prompts import SENTENCE
from copyscope.training.data.tokenizer import train_tokenizer

STEPS = (0, 1, 8, 64, 512)
LAYERS, HEADS, N_CTX = 2, 2, 64


def add_checkpoint(folder: Path, step: int) -> None:
    torch.manual_seed(step)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=N_CTX,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    place = folder / f"step{step}"
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer = train_tokenizer([SENTENCE] * 20, 300)
    tokenizer.save(str(place / "tokenizer.json"))


def write_tables(folder: Path, steps: tuple[int, ...] = STEPS) -> None:
    at = np.array(steps, dtype=float)
    names = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    heads = {name: 0.02 + 0.1 * i * rise(at, 8) for i, name in enumerate(names)}
    accuracy = 0.5 * rise(at, 64)
    curves = {
        "copying_accuracy_token": accuracy,
        "copying_accuracy_exact": accuracy**3,
        "copying_loss_first": np.full(len(at), 6.0),
        "copying_loss_second": 6 - accuracy,
        "copying_loss_difference": -accuracy,
    }
    tables = {
        "heads": series_table(heads, list(steps), "prefix_matching_sum"),
        "model": model_table(curves, list(steps)),
    }
    for kind, table in tables.items():
        (folder / "results" / kind).mkdir(parents=True, exist_ok=True)
        for (step,), part in table.with_columns(run=pl.lit(folder.name)).group_by("step"):
            part.write_parquet(folder / "results" / kind / f"step{step:08}.parquet")


def tiny_series(folder: Path, steps: tuple[int, ...] = STEPS) -> Path:
    folder.mkdir(parents=True)
    for step in steps:
        add_checkpoint(folder, step)
    write_tables(folder, steps)
    return folder
