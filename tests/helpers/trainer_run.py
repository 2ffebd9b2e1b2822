"""Somebody else's training: plain transformers and its `Trainer`. Writes checkpoint-0 … checkpoint-N.

python tests/helpers/trainer_run.py OUT
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments


class Repeats(Dataset):
    """Random tokens, twice."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        once = torch.randint(0, 100, (20,), generator=torch.Generator().manual_seed(number))
        tokens = torch.cat([once, once])
        return {"input_ids": tokens, "labels": tokens}


def train(out: Path, steps: int = 8, every: int = 2) -> Path:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=2))
    model.save_pretrained(out / "checkpoint-0")
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        save_steps=every,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        logging_steps=every,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Repeats())
    trainer.train()
    trainer.save_model()  # as many do: the last model lies beside its checkpoints
    return out


if __name__ == "__main__":
    train(Path(sys.argv[1]))
