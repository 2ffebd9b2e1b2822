"""What opens prompts and which ids are drawn, for the kinds of tokenizers that public models have."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from copyscope.interp.models.tokenizer import read_tokenizer
from copyscope.interp.models.vocabulary import vocabulary_of
from copyscope.interp.prompts.generate import drawable
from copyscope.training.errors import InputError


def tokenizer(special: list[str], size: int = 400, opener: str | None = None, **names: str) -> PreTrainedTokenizerFast:
    bpe, chance = Tokenizer(models.BPE()), random.Random(0)
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 7))) for _ in range(400)]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([" ".join(chance.choices(words, k=200)) for _ in range(40)], trainer)
    if opener:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{opener} $A", special_tokens=[(opener, bpe.token_to_id(opener))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


KINDS = {
    "Llama 2": (["<unk>", "<s>", "</s>"], {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, "<s>"),
    "GPT-2": (["<|end|>"], {"bos_token": "<|end|>", "eos_token": "<|end|>", "unk_token": "<|end|>"}, "<|end|>"),
    "Gemma": (
        ["<pad>", "<eos>", "<bos>", "<unk>"],
        {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
        "<bos>",
    ),
    "T5": (["<pad>", "</s>"], {"pad_token": "<pad>", "eos_token": "</s>"}, None),
    "only unknown": (["<unk>"], {"unk_token": "<unk>"}, None),
    "only padding": (["<pad>"], {"pad_token": "<pad>"}, None),
    "no special token": ([], {}, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bos(kind):
    special, names, wanted = KINDS[kind]
    tok = tokenizer(special, **names)
    found = vocabulary_of(tok, 600)
    assert found.bos_token == wanted
    assert found.bos_id == (None if wanted is None else tok.convert_tokens_to_ids(wanted))
    assert not {*found.special} & {*found.known.tolist()}
    assert len(found.known) == len(tok) - len(special)


@pytest.mark.parametrize("sign", ["config", "tokenizer"])
def test_end_token_opens_prompts_only_where_the_model_was_trained_so(sign):
    special: Any = ["<pad>", "x", "<end>"]
    names: Any = {"pad_token": "<pad>", "eos_token": "<end>"}
    assert vocabulary_of(tokenizer(special, **names), 600).bos_id is None
    tok = tokenizer(special, opener="<end>" if sign == "tokenizer" else None, **names)
    config = SimpleNamespace(bos_token_id=2 if sign == "config" else None)
    found = vocabulary_of(tok, 600, config)
    assert (found.bos_id, found.bos_from) == (2, "config" if sign == "config" else "eos_token")


def test_random_tokens_are_ones_that_the_tokenizer_has():
    found = vocabulary_of(tokenizer(["<s>"], 400, bos_token="<s>"), 1024)
    ids = drawable(found).tolist()
    assert max(ids) < 400
    assert 0 not in ids


def test_reserved_tokens_are_not_drawn():
    tok = tokenizer(["<s>"], 400, bos_token="<s>")
    tok.add_tokens(["<unused0>", "<unused1>"])
    assert {400, 401} <= {*vocabulary_of(tok, 402).special}


def test_tokens_beyond_the_embedding_are_left_out():
    tok = tokenizer([], 400)
    tok.add_special_tokens({"bos_token": "<s>"})
    found = vocabulary_of(tok, 400)
    assert found.bos_id is None
    assert max(found.known) < 400


def test_without_a_tokenizer_all_ids_are_drawn_and_nothing_opens_prompts():
    found = vocabulary_of(None, 50)
    assert (found.bos_id, found.known.tolist()) == (None, list(range(50)))


def test_half_a_tokenizer_is_refused(tmp_path):
    """transformers reads no vocab.json without merges.txt, and prompts would not be the same without a tokenizer."""
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(InputError, match=r"merges\.txt"):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").unlink()
    assert read_tokenizer(tmp_path) is None
