"""The run configuration: every default of copyscope, with why. Imports nothing heavy, so bad input fails at once."""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from copyscope.training.errors import InputError

PRESETS = Path(__file__).parent / "presets"
_Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch takes


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any, info: Any) -> Any:
        """`true` and `"3"` would otherwise pass for the numbers 1 and 3."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if kind is not bool and isinstance(value, bool):
            raise ValueError("input should be a number or a text, not true or false")
        if kind in (int, float, int | None) and isinstance(value, str):
            raise ValueError("input should be a number, not a text")
        return value


class ModelConfig(_Section):
    """The Llama that is trained: sizes, positions, initialisation, dropout."""

    n_layers: int = Field(default=4, ge=1)
    """Transformer blocks."""
    n_heads: int = Field(default=4, ge=1)
    """Attention heads a layer."""
    n_key_value_heads: int | None = Field(default=None, ge=1)
    """Key-value heads a layer (grouped-query attention); none given: one per head."""
    d_model: int = Field(default=128, ge=2)
    """Width of the residual stream."""
    d_head: int | None = Field(default=None, ge=2)
    """Width of a head; none given: d_model / n_heads."""
    d_mlp: int = Field(default=384, ge=1)
    """Width of the gated SiLU MLP."""
    n_ctx: int = Field(default=256, ge=2)
    """Context length in tokens; also the length of a training sequence."""
    tied_embeddings: bool = False
    """Whether W_U is the transpose of W_E; the paper's models are untied."""
    rope_theta: float = Field(default=10_000.0, gt=1)
    """Base of the rotary frequencies (RoFormer, section 3.2.2)."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square in RMSNorm."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the normal initialisation."""
    embedding_mean: float = Field(default=0.0, ge=0)
    """Standard deviation of one random vector that is added to every token's embedding at initialisation. Queries and
    keys have no bias, so a head that attends by position alone needs a direction that all tokens share; with one from
    the start, previous-token heads form sooner."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on attention probabilities while training (2409.09281, section 4)."""
    residual_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on what attention and MLP write into the residual stream, while training."""

    @model_validator(mode="after")
    def _divides(self) -> "ModelConfig":
        if self.d_model % self.n_heads:  # transformers' own rule, d_head or not
            raise ValueError(f"d_model {self.d_model} must be a multiple of n_heads {self.n_heads}: change one")
        if self.head_width % 2:
            raise ValueError(f"rotary positions need an even d_head, not {self.head_width}: change d_head or d_model")
        if self.n_heads % (self.n_key_value_heads or self.n_heads):
            raise ValueError(f"n_key_value_heads {self.n_key_value_heads} must divide n_heads {self.n_heads}")
        return self

    def canonical(self) -> dict[str, Any]:
        """What decides the model, for hashes: runs without `embedding_mean` keep the names they had before it."""
        return self.model_dump(mode="json", exclude=None if self.embedding_mean else {"embedding_mean"})

    @property
    def head_width(self) -> int:
        """`d_head`, resolved."""
        return self.d_head or self.d_model // self.n_heads


class DataConfig(_Section):
    """The text, its tokenizer, and which windows of it are trained on."""

    corpus: str = "python"
    """`python` (the embedded default), a file or folder of .txt, .jsonl, .ndjson, .json or .parquet (plain, .gz, .xz or
    .zst), or `hf:<data set>[:<subset>]`."""
    field: str = "text"
    """Field of JSON objects, or column of tables, that holds the text."""
    encoding: str = "utf-8"
    """Of text and JSON files without a byte-order mark, by Python's name, as in `cp1252`."""
    ascii_only: bool = False
    """Leave out documents with other characters. Else up to 130 entries of a small vocabulary are bytes that the text
    hardly ever holds, and no model learns to copy those."""
    vocab_size: int = Field(default=2048, ge=300, le=65_536)
    """Entries of the byte-level BPE vocabulary; 256 bytes and one special token are always in it."""
    max_megabytes: float = Field(default=100.0, gt=0)
    """Text read at most, in 10^6 bytes of UTF-8; documents are taken in the order of their hash, so any part is a
    fair sample."""
    repeat_choice: int = Field(default=1, ge=1, le=64)
    """Each training sequence is the one of this many windows of the corpus in which repeated names are worth most
    (`training.data.repeats.repeat_value`); 1 takes every window. Held-out text and tests are never chosen so."""
    validation_share: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of documents held out; a document is in training or in validation, never in both."""

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            "a".encode(name)
        except (LookupError, ValueError):
            raise ValueError("no such encoding; give one that Python knows, as in utf-8, cp1252 or utf-16-le") from None
        return name

    def canonical(self) -> dict[str, Any]:
        """What decides the text, for hashes: fields that came later count only where they are not at their default, so
        that runs and tokens made before keep their names."""
        came_later = ("field", "encoding", "ascii_only")
        later = {name for name in came_later if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude=later)


class OptimizerConfig(_Section):
    """The optimiser and its schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw: for every parameter. muon: for the matrices of attention and MLP, with AdamW for embeddings and norms
    (`training.model.optimizers`)."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Nesterov momentum of Muon."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate; one update of Muon is about as large as one of AdamW at the same rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay, on matrices only (norm weights are spared)."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean gradient."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of AdamW's mean squared gradient."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of AdamW's mean squared gradient."""
    warmup_steps: int = Field(default=200, ge=0)
    """Updates over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or a decay over the last `decay_share` of the steps."""
    decay_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps, at the end, over which the learning rate falls."""
    final_lr_share: float = Field(default=0.1, ge=0, le=1)
    """Where a decay ends, as a share of the peak."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""

    @model_validator(mode="after")
    def _only_for_muon(self) -> "OptimizerConfig":
        if self.name == "adamw" and self.momentum != OptimizerConfig.model_fields["momentum"].default:
            raise ValueError("momentum is a setting of Muon: leave it out, or set optimizer.name = 'muon'")
        return self

    def canonical(self) -> dict[str, Any]:
        """What decides the updates, for hashes: runs by AdamW keep the names they had before there was a choice."""
        return self.model_dump(mode="json", exclude={"name", "momentum"} if self.name == "adamw" else None)


class TrainConfig(_Section):
    """How long, in which batches and precision, and what is logged."""

    steps: int = Field(default=4000, ge=1)
    """Optimiser updates."""
    batch_size: int = Field(default=8, ge=1)
    """Sequences per update, over all processes."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Parts that a batch is computed in, one after the other, to save memory; the update is the same."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; weights, optimiser and the loss over the vocabulary stay fp32. auto: bf16 where it is
    faster (a GPU, or a CPU with AMX), fp32 elsewhere."""
    compile: bool = False
    """Compile the training loss (`torch.compile`), on a GPU; refused on a CPU. Faster, but less exact: results differ
    in their last bits from those without it, and between versions of PyTorch and types of GPU. Only without it does
    a resumed run end with the same bits."""
    log_every: int = Field(default=25, ge=1)
    """Updates between lines of metrics.jsonl."""
    validate_every: int = Field(default=100, ge=1)
    """Updates between validation losses (every checkpoint has one too)."""
    validation_sequences: int = Field(default=32, ge=1)
    """Sequences of held-out text behind one validation loss."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; none given: every core."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics also go (into the run's folder `tracking`, for tensorboard); metrics.jsonl is always written."""

    @model_validator(mode="after")
    def _parts(self) -> "TrainConfig":
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"gradient_accumulation {self.gradient_accumulation} must divide batch_size {self.batch_size}"
            )
        return self

    def canonical(self) -> dict[str, Any]:
        """What counts for hashes: runs that are not compiled keep the names they had before there was a choice."""
        return self.model_dump(mode="json", exclude=None if self.compile else {"compile"})


class CheckpointConfig(_Section):
    """Which steps are saved, and which stay."""

    every: int = Field(default=100, ge=1)
    """Spacing of the even part of the series; before it come 0, 1, 2, 4, …"""
    steps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Further steps to save."""
    keep: Literal["all", "subset", "none"] = "all"
    """Which stay on disk once `on_checkpoint` has seen them: all, those of `steps` and the last, or none."""
    resume_every: int = Field(default=250, ge=1)
    """Updates between full training states (the last two are kept)."""
    state_every: int | None = Field(default=None, ge=1)
    """Updates between full training states that are kept for good, for `zoom` to start from; a multiple of
    `resume_every`. None given: none is, and `zoom` starts from step 0 or from one of the last two."""
    mean_every: int | None = Field(default=None, ge=1)
    """Updates between the weights whose mean since the checkpoint before a checkpoint holds too, for `average` to make
    its means of. None given: it has its own weights alone."""

    @model_validator(mode="after")
    def _kept(self) -> "CheckpointConfig":
        if (self.state_every or 0) % self.resume_every:
            raise ValueError(f"state_every {self.state_every} must be a multiple of resume_every {self.resume_every}")
        return self

    def canonical(self) -> dict[str, Any]:
        """What counts for hashes: runs without means keep the names they had before there were any."""
        return self.model_dump(mode="json", exclude=None if self.mean_every else {"mean_every"})


class SeedConfig(_Section):
    """Where chance comes from: the weights at step 0, the order of the text, the prompts of tests."""

    init: _Seed = 0
    data: _Seed = 0
    eval: _Seed = 0


class InterventionConfig(_Section):
    """What is done to the model while it trains; nothing by default. Heads are held while it is
    measured too, and for the validation loss, which counts every token."""

    heads: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] = ()
    """(layer, head), as in `[[2, 3], [3, 1]]`."""
    mode: Literal["zero", "previous_token", "uniform"] = "zero"
    """Of these heads: output 0, or attention clamped to the token before (a perfect previous-token head from the start;
    2404.07129 clamps so) or to all visible tokens alike."""
    skip_predictable: bool = False
    """Leave out of the loss each token that followed the current one before in the sequence. A left-out token counts as
    loss 0 in the mean, so that every other token weighs as much as without; metrics.jsonl has the mean over the others
    and `predictable_share`."""
    from_step: int = Field(default=0, ge=0)
    """First update that is concerned, counted from 0."""
    until_step: int | None = Field(default=None, ge=1)
    """First update that is no longer concerned; none given: to the end."""

    @model_validator(mode="after")
    def _lasts(self) -> "InterventionConfig":
        if self.until_step is not None and self.until_step <= self.from_step:
            raise ValueError(f"until_step {self.until_step} must be after from_step {self.from_step}")
        return self


class ForkConfig(_Section):
    """Which run this one is up to some step; written by `copyscope fork` alone, and empty for a run from step 0."""

    of: str = ""
    """`run_id` of the parent, whose first `at` updates are this run's."""
    at: int = Field(default=0, ge=0)
    """Updates that are the parent's; the first of this configuration is number `at`, counted from 0."""
    tokens: int = Field(default=0, ge=0)
    """Tokens consumed by then."""
    window: int = Field(default=0, ge=0)
    """Windows of the text taken by then: the next update continues there; 0 where it reads another text."""
    order: tuple[tuple[Annotated[int, Field(ge=0)], _Seed], ...] = ()
    """Which seed ordered those windows, as (first window, seed); the fork's own `seeds.data` orders the rest."""
    until: int | None = Field(default=None, ge=1)
    """First update that is the parent's again in all of `after`; none given: what differs lasts to the end."""
    after: dict[str, Any] = {}
    """Dotted field → its value in the parent, from `until` on."""

    @model_validator(mode="after")
    def _only_of_a_parent(self) -> "ForkConfig":
        if not self.of and self != ForkConfig.model_construct():
            raise ValueError("these fields are written by `copyscope fork`; take them out")
        if (self.until is None) != (not self.after) or (self.until is not None and self.until <= self.at):
            raise ValueError(f"until {self.until} must be after at {self.at}, and go with after")
        return self

    def canonical(self) -> dict[str, Any]:
        """What decides the run, for hashes: forks whose change lasts keep the names they had before it could end."""
        return self.model_dump(mode="json", exclude={"until", "after"} if self.until is None else None)


class RunConfig(_Section):
    """All that decides a run. Two runs with equal `run_id` are the same experiment."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    seeds: SeedConfig = SeedConfig()
    intervention: InterventionConfig = InterventionConfig()
    fork: ForkConfig = ForkConfig()

    @model_validator(mode="after")
    def _heads_exist(self) -> "RunConfig":
        m = self.model
        for layer, head in self.intervention.heads:
            if layer >= m.n_layers or head >= m.n_heads:
                raise ValueError(
                    f"intervention.heads: [{layer}, {head}] does not exist in {m.n_layers} layers × {m.n_heads} heads"
                )
        return self

    @classmethod
    def load(cls, source: str | Path) -> "RunConfig":
        """A preset by name, or a TOML file by path. Raises InputError naming the file or the field."""
        path = Path(source)
        if path.suffix != ".toml":
            path = PRESETS / f"{source}.toml"
            if not path.is_file():
                near = get_close_matches(str(source), presets(), n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise InputError(
                    f"no preset {str(source)!r}; {hint}presets are {', '.join(presets())}; or give a .toml file"
                )
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{path}: no such file; give a TOML file or one of the presets {', '.join(presets())}"
            ) from None
        except IsADirectoryError:
            raise InputError(f"{path}: is a folder; give a TOML file") from None
        except (ValueError, RecursionError) as error:  # bad TOML, bad UTF-8, a number of thousands of digits
            raise InputError(f"{path}: not valid TOML: {error}; fix the file") from None
        return cls.parse(values, where=str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "config") -> "RunConfig":
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{where}: {_one_line(error)}") from None

    def with_values(self, values: Mapping[str, Any]) -> "RunConfig":
        """A copy with dotted fields replaced, as in `{"optimizer.lr": 1e-3}`."""
        nested = self.model_dump(mode="json")
        for dotted, value in values.items():
            section, _, field = dotted.partition(".")
            if section not in nested or field not in nested[section]:
                raise InputError(f"no field {dotted!r}{_hint(dotted)}")
            nested[section][field] = value
        return self.parse(nested)

    def only(self, fields: Iterable[str]) -> dict[str, Any]:
        """The values of dotted fields, as JSON has them."""
        nested = self.model_dump(mode="json")
        return {field: nested[section][name] for field in sorted(fields) for section, name in [field.split(".")]}

    @property
    def run_id(self) -> str:
        """First 12 hex digits of the sha256 of the canonical form (JSON, sorted keys). Plain training is the same
        experiment whether or not the file spells out that there is no intervention, or that AdamW trains it. A fork is
        another than its parent, whatever it changes."""
        plain = {"intervention"} if self.intervention == InterventionConfig() else set()
        fields = self.model_dump(mode="json", exclude=plain | self._left_out())
        fields |= {
            section: getattr(self, section).canonical()
            for section in ("model", "data", "optimizer", "train", "checkpoints")
        }
        fields |= {"fork": self.fork.canonical()} if self.fork.of else {}
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_toml(self) -> str:
        """The resolved configuration; fields without a value are left out, as TOML has no null."""
        fields = self.model_dump(mode="json", exclude_none=True, exclude=self._left_out())
        return tomli_w.dumps(fields | ({"fork": self.fork.canonical()} if self.fork.of else {}))

    def _left_out(self) -> set[str]:
        """What a run from step 0 does not mention."""
        return set() if self.fork.of else {"fork"}


def presets() -> list[str]:
    """Names of the presets that come with copyscope."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["optimizer.lr=1e-3"]` to `{"optimizer.lr": 0.001}`; values are TOML, bare words are strings."""
    values: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or "." not in name:
            raise InputError(f"--set {text}: write it as section.field=value, as in optimizer.lr=1e-3")
        try:
            values[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            values[name.strip()] = value
    return values


def _field_names() -> list[str]:
    sections = RunConfig().model_dump()
    del sections["fork"]  # nobody sets it
    return [f"{section}.{field}" for section, fields in sections.items() for field in fields]


def _hint(name: str) -> str:
    near = get_close_matches(name, _field_names(), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; fields are {', '.join(_field_names())}"


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"no field {field!r}{_hint(field)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message[0].lower()}{message[1:]} (given: {repr(first['input'])[:80]})"
