"""Every family: transformers' logits, scores of heads, losses, one ablation and circuits, each computed apart."""

from typing import Any

import pytest
import torch
import transformers
from handmade import NO_SPECIAL
from transformers import AutoModelForCausalLM

from copyscope.interp.ablation.effects import sweep_heads
from copyscope.interp.measures.behavior import copying_accuracy, copying_loss
from copyscope.interp.measures.circuits import eigenvalue_positivity, head_weights, model_eigenvalue_positivity
from copyscope.interp.measures.heads import induction_attention, previous_token, score_heads
from copyscope.interp.models.hooked import load_hooked, load_weights_into
from copyscope.interp.models.lens import HAS_HOOKED, HookedTransformer
from copyscope.interp.prompts.generate import copying_test, repeated_random_tokens
from copyscope.interp.prompts.varied import varied_repeats

CONTEXT, VOCAB, HEADS = 96, 90, 4
B: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    **NO_SPECIAL,
}
GPT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_positions": CONTEXT,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": HEADS,
    **NO_SPECIAL,
}
KV, HD = {"num_key_value_heads": 2}, {"head_dim": 8}
MIXED = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 48}
FALCON = {key: value for key, value in B.items() if key != "intermediate_size"}

# name: transformers' prefix, its config, whether it loads as a HookedTransformer
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "Llama": ("Llama", B | KV, True),
    "Llama, attention biases": ("Llama", B | KV | {"attention_bias": True}, False),
    "Llama, MLP biases": ("Llama", B | KV | {"mlp_bias": True}, False),
    "Llama, yarn": ("Llama", B | KV | {"rope_parameters": YARN}, False),
    "GPT-2": ("GPT2", GPT, True),
    "GPT-NeoX": ("GPTNeoX", B, True),
    "GPT-NeoX, no biases": ("GPTNeoX", B | {"attention_bias": False}, True),
    "OLMo": ("Olmo", B, True),
    "OLMo, clipped": ("Olmo", B | {"clip_qkv": 1.0}, False),
    "OLMo 2": ("Olmo2", B | KV, False),
    "OLMo 3": ("Olmo3", B | KV | MIXED, False),
    "OLMoE": ("Olmoe", B | KV | {"num_experts": 4, "num_experts_per_tok": 2}, False),
    "Gemma": ("Gemma", B | KV | HD, False),
    "Gemma 2": (
        "Gemma2",
        B | KV | HD | {"sliding_window": 16, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
        False,
    ),
    "Gemma 3": ("Gemma3", B | KV | HD | MIXED | {"query_pre_attn_scalar": 8}, False),
    "Qwen 2": ("Qwen2", B | KV, True),
    "Qwen 3": ("Qwen3", B | KV | HD, True),
    "SmolLM3": ("SmolLM3", B | KV | {"no_rope_layers": [1, 0]}, False),
    "Mistral": ("Mistral", B | KV | HD | {"sliding_window": None}, True),
    "Mistral, window": ("Mistral", B | KV | HD | {"sliding_window": 16}, True),
    "Mixtral": ("Mixtral", B | KV | {"num_local_experts": 4, "num_experts_per_tok": 2}, False),
    "Phi": ("Phi", B, False),
    "Phi-3": ("Phi3", B | KV | {"pad_token_id": 0}, False),
    "GPT-J": ("GPTJ", GPT | {"rotary_dim": 4}, False),
    "GPT-Neo": (
        "GPTNeo",
        {
            "vocab_size": VOCAB,
            "max_position_embeddings": CONTEXT,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
            **NO_SPECIAL,
        },
        False,
    ),
    "OPT": ("OPT", FALCON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1}, False),
    "Bloom": ("Bloom", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": HEADS, **NO_SPECIAL}, False),
    "Falcon 7b": ("Falcon", FALCON | {"multi_query": True, "parallel_attn": True}, False),
    "Falcon, new decoder": ("Falcon", FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True}, False),
    "StableLM": ("StableLm", B | KV, False),
    "Cohere": ("Cohere", B | KV | {"pad_token_id": 0, "logit_scale": 0.25}, False),
    "Granite": (
        "Granite",
        B
        | KV
        | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 4.0},
        False,
    ),
    "CodeGen": ("CodeGen", GPT | {"n_ctx": CONTEXT, "rotary_dim": 4}, False),
    "MPT": (
        "Mpt",
        {
            "vocab_size": VOCAB,
            "d_model": 32,
            "n_heads": HEADS,
            "n_layers": 2,
            "max_seq_len": CONTEXT,
            "expansion_ratio": 2,
            **NO_SPECIAL,
        },
        False,
    ),
    "StarCoder 2": ("Starcoder2", B | KV, False),
    "GPT-BigCode": ("GPTBigCode", GPT, False),
}
OUT = ("o_proj", "dense", "out_proj", "c_proj")
PROMPTS = repeated_random_tokens(range(5, 85), 40, 3)
TEST = copying_test(range(5, 85), CONTEXT, n_samples=6)


def made(family: str, folder: Any) -> Any:
    """A random model of the family, saved, and read back by transformers."""
    kind, size, _ = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")(**size)
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.05))
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def loss_of(hf: Any) -> float:
    """Copying loss, second half, by transformers' logits."""
    chance = hf(PROMPTS).logits.log_softmax(-1)[:, :-1].gather(2, PROMPTS[:, 1:, None])[..., 0]
    return -chance[:, -40:].double().mean().item()


def loss_without(hf: Any, layer: int, head: int) -> float:
    """The same with a head's input to the output projection at 0."""

    def zero(module: Any, args: Any) -> Any:
        x = args[0].clone()
        x.view(*x.shape[:-1], HEADS, -1)[..., head, :] = 0
        return (x, *args[1:])

    outs = [m for n, m in hf.named_modules() if n.split(".")[-1] in OUT and ("attn" in n or "attention" in n)]
    handle = outs[layer].register_forward_pre_hook(zero)
    try:
        return loss_of(hf)
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_family(family, tmp_path):
    hf = made(family, tmp_path)
    tokens = torch.randint(0, VOCAB, (2, 80), generator=torch.Generator().manual_seed(1))
    model = load_hooked(tmp_path)
    assert isinstance(model, HookedTransformer) == (FAMILIES[family][2] and HAS_HOOKED)
    assert (model(tokens) - hf(tokens).logits).abs().max() < 1e-4
    table = score_heads(model, ["previous_token", "induction_attention"], vocab=range(5, 85), n_prompts=3)
    prompts = varied_repeats(range(5, 85), 100, 3, 0, None, 2, n_ctx=model.cfg.n_ctx)
    for name, measure in (("previous_token", previous_token), ("induction_attention", induction_attention)):
        wanted = torch.stack([measure(pattern, prompts) for pattern in hf(prompts, output_attentions=True).attentions])
        assert torch.allclose(table.filter(measure=name)["value"].to_torch().float(), wanted.flatten(), atol=1e-4)
    assert copying_loss(model, PROMPTS).second_half == pytest.approx(loss_of(hf), abs=1e-3)
    best = hf(torch.cat([TEST.tokens, TEST.suffix[:, :-1]], dim=1)).logits[:, -6:].argmax(-1)
    assert copying_accuracy(model, TEST).token == (best == TEST.suffix).double().mean().item()
    effect = sweep_heads(model, TEST, repeated=PROMPTS, heads=[(1, 3)]).filter(measure="copying_loss")["value"].item()
    assert effect == pytest.approx(loss_without(hf, 1, 3) - loss_of(hf), abs=2e-4)
    assert model_eigenvalue_positivity(head_weights(model)).isfinite().all()


def circuits(hf: Any, kind: str) -> torch.Tensor:
    """Eigenvalue positivity, folded, by its definition, from transformers' weights by name."""
    s = hf.state_dict()
    plus = 1.0 if kind.startswith("Gemma") else 0.0
    centred = kind in ("StableLm", "Olmo")

    def norm(name: str) -> torch.Tensor:
        return s[name] + plus if name in s else torch.ones(32)

    rows = []
    for layer in range(2):
        p = f"model.layers.{layer}."
        both = kind in ("Gemma2", "Gemma3", "Olmo2", "Olmo3")
        before = torch.ones(32) if kind in ("Olmo2", "Olmo3") else norm(p + "input_layernorm.weight")
        after = norm(p + "post_attention_layernorm.weight") if both else torch.ones(32)
        V, W_O = s[p + "self_attn.v_proj.weight"].T * before[:, None], s[p + "self_attn.o_proj.weight"].T * after
        U = s["lm_head.weight"].T * norm("model.norm.weight")[:, None]
        if centred:
            V, U = V - V.mean(0, keepdim=True), U - U.mean(0, keepdim=True)
        V = V.unflatten(1, (-1, 8)).movedim(1, 0)
        V = V.repeat_interleave(HEADS // len(V), dim=0)
        rows.append(eigenvalue_positivity(s["model.embed_tokens.weight"], V, W_O.unflatten(0, (HEADS, 8)), U))
    return torch.stack(rows)


PLAIN = (
    "Llama, attention biases",
    "OLMo",
    "OLMo, clipped",
    "OLMo 2",
    "OLMo 3",
    "Gemma",
    "Gemma 2",
    "Gemma 3",
    "Qwen 2",
)


@pytest.mark.parametrize("family", [*PLAIN, "Qwen 2", "Qwen 3", "Mistral", "StableLM", "SmolLM3"])
def test_circuits_with_the_norms_on_the_way(family, tmp_path):
    hf = made(family, tmp_path)
    got = model_eigenvalue_positivity(head_weights(load_hooked(tmp_path, prove=False)))
    assert torch.allclose(got, circuits(hf, FAMILIES[family][0]), atol=1e-3)


def test_a_series_of_bridges(tmp_path):
    first, second = made("OLMo 2", tmp_path / "a"), made("OLMo 2", tmp_path / "b")
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(0.1)
    second.save_pretrained(tmp_path / "b")
    model = load_weights_into(load_hooked(tmp_path / "a"), tmp_path / "b")
    with torch.no_grad():
        logits = model(PROMPTS)
        assert torch.allclose(logits, second(PROMPTS).logits, atol=1e-4)
        assert not torch.allclose(logits, first(PROMPTS).logits, atol=1e-2)
