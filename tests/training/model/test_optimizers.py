"""Muon is PyTorch's, in fp32 and for many matrices at a time; everything but hidden matrices is AdamW's."""

import pytest
import torch

from copyscope.training.config import RunConfig
from copyscope.training.model.llama import build_model
from copyscope.training.model.optimizers import STEPS, Muon, build_optimizers, orthogonal

SHAPES = ((24, 16), (24, 16), (16, 24), (16, 16))


def test_the_updates_are_those_of_pytorch() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    mine = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1)
    reference = torch.optim.Muon(
        theirs, lr=0.02, momentum=0.9, weight_decay=0.1, ns_steps=STEPS, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        for matrix, other in zip(ours, theirs, strict=True):
            matrix.grad = torch.randn(matrix.shape)
            other.grad = matrix.grad.clone()
        before = [matrix.detach().clone() for matrix in ours]
        mine.step()
        reference.step()
        for matrix, other, start in zip(ours, theirs, before, strict=True):
            update = (matrix - start).norm()
            assert (matrix - other).norm() < 0.05 * update  # PyTorch's products are in bf16
            other.data.copy_(matrix.data)


def test_singular_values_become_about_one_and_directions_stay() -> None:
    torch.manual_seed(1)
    matrices = torch.randn(3, 10, 6)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonal(matrices)
    values = torch.linalg.svdvals(result)
    assert 0.6 < values.min() < values.max() < 1.25
    inside = u.transpose(1, 2) @ result @ v.transpose(1, 2)
    assert torch.allclose(inside, torch.diag_embed(inside.diagonal(dim1=1, dim2=2)), atol=1e-4)
    assert torch.isfinite(orthogonal(torch.zeros(1, 4, 4))).all()
    assert torch.allclose(orthogonal(matrices.transpose(1, 2)), result.transpose(1, 2), atol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_one_optimizer(name: str, tied: bool) -> None:
    config = RunConfig().with_values({"optimizer.name": name, "model.tied_embeddings": tied, "model.n_layers": 2})
    model = build_model(config, 300)
    optimizers = build_optimizers(config.optimizer, model)
    trained = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(trained) == len({id(p) for p in trained}) == len(list(model.parameters()))
    names = {id(p): n for n, p in model.named_parameters()}
    by_muon = [names[id(p)] for o in optimizers if isinstance(o, Muon) for g in o.param_groups for p in g["params"]]
    assert len(by_muon) == (2 * 7 if name == "muon" else 0)
    assert all("proj" in n for n in by_muon)


def test_a_run_by_adamw_keeps_the_id_it_had_before_there_was_a_choice() -> None:
    assert RunConfig().run_id == "3dfdded71140"
