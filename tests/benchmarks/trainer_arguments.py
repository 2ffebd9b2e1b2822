"""What transformers' Trainer is given in benchmarks: a run's own settings, and nothing written or logged."""

import tempfile

from transformers import TrainingArguments

from copyscope.training.config import RunConfig


def trainer_arguments(config: RunConfig, updates: int, rows: int, bf16: bool, on_cpu: bool) -> TrainingArguments:
    """`rows`: sequences that the device holds at once. Its fused AdamW, at a constant rate."""
    o = config.optimizer
    return TrainingArguments(
        output_dir=tempfile.gettempdir(),  # where it writes nothing, but it makes the folder
        max_steps=updates,
        bf16=bf16,
        use_cpu=on_cpu,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=config.train.gradient_accumulation,
        learning_rate=o.lr,
        weight_decay=o.weight_decay,
        adam_beta1=o.beta1,
        adam_beta2=o.beta2,
        adam_epsilon=o.eps,
        max_grad_norm=o.clip,
        optim="adamw_torch_fused",
        lr_scheduler_type="constant",
        warmup_steps=0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )
