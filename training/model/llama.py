"""`RunConfig` to a transformers `LlamaForCausalLM`: the only place that builds the trained model."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from copyscope.training.config import RunConfig


def build_model(config: RunConfig, vocab_size: int, bos_id: int = 0) -> LlamaForCausalLM:
    """A freshly initialised Llama in fp32; the same weights for the same `seeds.init`.

    `vocab_size` is the tokenizer's, which a small corpus can leave below `data.vocab_size`.
    """
    model = config.model
    torch.manual_seed(config.seeds.init)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=model.d_model,
            intermediate_size=model.d_mlp,
            num_hidden_layers=model.n_layers,
            num_attention_heads=model.n_heads,
            num_key_value_heads=model.n_key_value_heads or model.n_heads,
            head_dim=model.head_width,
            max_position_embeddings=model.n_ctx,
            rms_norm_eps=model.norm_eps,
            initializer_range=model.init_std,
            attention_dropout=model.attention_dropout,
            tie_word_embeddings=model.tied_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
            bos_token_id=bos_id,
            eos_token_id=bos_id,
            pad_token_id=None,
        )
    )
    if model.embedding_mean:
        with torch.no_grad():
            llama.model.embed_tokens.weight.add_(model.embedding_mean * torch.randn(model.d_model))
    return llama
