"""What a model starts from."""

import torch

from copyscope.training.config import RunConfig
from copyscope.training.model.llama import build_model


def test_an_embedding_mean_is_one_vector_for_all_tokens_and_changes_nothing_else() -> None:
    config = RunConfig().with_values({"model.n_layers": 1, "seeds.init": 3})
    plain = dict(build_model(config, 300).named_parameters())
    shifted = dict(build_model(config.with_values({"model.embedding_mean": 0.5}), 300).named_parameters())
    name = "model.embed_tokens.weight"
    shift = shifted[name] - plain[name]
    assert torch.allclose(shift, shift[0].expand_as(shift), atol=1e-6)
    assert 0.4 < shift[0].std() < 0.6
    assert all(torch.equal(plain[other], shifted[other]) for other in plain if other != name)
