"""A made-up index with its blocks, in the layout that the page reads; every number has a known answer."""

from typing import Any, NamedTuple

import numpy as np

from copyscope.analyses.page.build import script_json

HOSTILE = [
    "</script>",
    "<img src=x onerror=\"document.documentElement.dataset.broken='1'\">",
    "\"quoted\" 'twice'",
    "nul\x00bell\x07",
    "\u202eright to left",
    "\u0645\u0631\u062d\u0628\u0627",
    "\ud800",
    "${x}`",
    "<!--",
    " two  spaces ",
    "line\nend",
    "tab\t",
    "&lt;b&gt;",
    "]]>",
    "javascript:alert(1)",
    "=1+1",
]


class Made(NamedTuple):
    index: dict[str, Any]
    blocks: dict[str, bytes]
    scores: dict[str, np.ndarray]
    """(step, head) by block name."""
    attention: dict[str, np.ndarray]
    """(head, query, key) in 0..255 by block name."""


def made(
    n_layers: int = 3, n_heads: int = 4, n_steps: int = 24, runs: int = 1, half: int = 12, hostile: bool = True
) -> Made:
    """Runs of `n_steps` checkpoints (0, 1, 2, 4 … or evenly spread); attention of a prompt of 2 × `half` tokens.

    The last head of the last layer is an induction head that forms at the middle checkpoint; head 1 of layer 0 a
    previous-token head that forms a quarter of the way. One score of head 0 is missing at the third checkpoint.
    """
    blocks: dict[str, bytes] = {}
    scores: dict[str, np.ndarray] = {}
    attention: dict[str, np.ndarray] = {}
    entries = [_run(i, n_layers, n_heads, n_steps, half, hostile, blocks, scores, attention) for i in range(runs)]
    words = {
        "low": 0,
        "high": 1,
        "signed": False,
        "unit": "",
        "scale": "0 to 1",
        "meaning": "What it means.",
        "source": "A paper",
        "cannot_tell": "anything else",
    }
    nats = words | {"low": None, "high": None, "signed": True, "unit": "nats", "scale": "nats"}
    measures = {
        "prefix_matching_sum": words | {"title": "Prefix matching"},
        "previous_token": words | {"title": "Previous-token attention"},
        "induction_score": words | {"title": "Induction score", "low": -1, "signed": True, "scale": "-1 to 1"},
        "copying_accuracy_token": words | {"title": "Copying accuracy per token"},
        "task:recall pairs=4": words | {"title": "recall pairs=4: choice accuracy"},
        "task:recall pairs=8": words | {"title": "recall pairs=8: choice accuracy"},
        "copying_loss_first": nats | {"title": "Loss on the first half"},
        "copying_loss_second": nats | {"title": "Loss on the repeated half"},
        "zero:copying_accuracy_token": words
        | {"title": "Copying accuracy per token: change when the head is removed (zero)", "low": -1, "signed": True},
    }
    title = f"Made up {HOSTILE[0]} {HOSTILE[1]}" if hostile else "Made up"
    index = {
        "version": 1,
        "live": False,
        "title": title,
        "measures": measures,
        "runs": entries,
        "made": {"copyscope": "0.1.0", "python": "3.11"},
        "summary": ["Copying formed at step 64.", HOSTILE[1] if hostile else "Nothing else."],
        "left_out": ["Attention of 3 checkpoints was left out."],
        "claims": [
            {
                "claim": "Copying comes late",
                "verdict": verdict,
                "effect": 0.5,
                "interval": [0.2, 0.8],
                "runs": 3,
                "rule": "an interval",
                "break_condition": "if early",
                "text": HOSTILE[0],
            }
            for verdict in ("supported", "contradicted", "undecided")
        ],
    }
    return Made(index, blocks, scores, attention)


def made_family() -> Made:
    """A run (0) with what is forked from it at step 64: a change that ends at step 512 and has a hostile label (1), two
    placebos (2, 3); a fork of the change at step 512 (4); and a fork at step 448 of a run that is not here (5).

    All are made alike, but that the copying accuracy of fork n is n / 100 lower from its fork's step on.
    """
    found = made(runs=6, hostile=False)
    words = [("run", None, 0), (f"lr × 2 {HOSTILE[1]}", 0, 64), ("placebo 1", 0, 64), ("placebo 2", 0, 64)]
    words += [("null fork", 1, 512), ("gone", None, 0), ("warmup steps 50 → 20", 5, 448)]
    kinds = ["run", "changed", "placebo", "placebo", "null", "run", "changed"]
    branches = []
    for place, ((label, parent, at), kind) in enumerate(zip(words, kinds, strict=True)):
        run = None if place == 5 else place - (place > 5)
        title = f"{words[parent][0]}, then {label}" if place == 4 and parent is not None else label
        until = 512 if place == 1 else None
        if run is not None and parent is not None:
            fields = found.index["runs"][run]
            fields["name"] = f"fork {run}"
            curve = fields["curves"]["copying_accuracy_token"]
            last = zip(curve["steps"], curve["values"], strict=True)
            curve["values"] = [value - run / 100 * (step > at) for step, value in last]
        name = "gone" if run is None else found.index["runs"][run]["name"]
        branches.append(
            {
                "run": run,
                "name": name,
                "parent": parent,
                "at": at,
                "until": until,
                "kind": kind,
                "label": label,
                "title": title,
            }
        )
    order = [0, 1, 4, 2, 3]
    first = [branches[place] | {"parent": {None: None, 0: 0, 1: 1}[branches[place]["parent"]]} for place in order]
    second = [branches[5], branches[6] | {"parent": 0}]
    formed = {"title": "", "columns": ["branch", "from step"]}
    chance = formed | {
        "columns": ["branch", "from step", "what", "value", "verdict"],
        "rows": [[branches[1]["title"], 64, "copying", 448, "within chance"]],
    }
    found.index["families"] = [
        {
            "branches": family,
            "formed": formed | {"rows": [[one["title"], one["at"]] for one in family]},
            "chance": chance if family is first else chance | {"rows": []},
        }
        for family in (first, second)
    ]
    return found


def checkpoints(count: int) -> list[int]:
    doubling = [0, *(2**i for i in range(min(count - 1, 9)))]
    return doubling + [256 + 64 * (i + 1) for i in range(count - len(doubling))]


def _run(
    number: int,
    n_layers: int,
    n_heads: int,
    n_steps: int,
    half: int,
    hostile: bool,
    blocks: dict[str, bytes],
    scores: dict[str, np.ndarray],
    attention: dict[str, np.ndarray],
) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    steps, heads = checkpoints(n_steps), n_layers * n_heads
    rise = lambda at: 1 / (1 + np.exp(-(np.arange(n_steps) - at) * 1.5))  # noqa: E731
    base = 0.08 * rng.random((n_steps, heads))
    induction, previous = base.copy(), 0.06 * rng.random((n_steps, heads))
    middle, quarter = n_steps // 2, n_steps // 4
    induction[:, -1] += 0.85 * rise(middle)
    previous[:, 1] += 0.9 * rise(quarter)
    induction[2, 0] = np.nan
    tables = {
        "prefix_matching_sum": induction,
        "previous_token": previous,
        "induction_score": induction * np.linspace(-1, 1, heads),
        "prefix_matching_sum_null": base * 0.5,
        "prefix_matching_sum_selectivity": induction * 12,
        "prefix_matching_sum_se": np.full_like(induction, 0.0123),
    }
    for name, table in tables.items():
        _put(blocks, scores, f"scores/{number}/{name}", table)
    ablated = steps[:: max(1, n_steps // 4)]
    effect = np.zeros((len(ablated), heads))
    effect[-1, -1] = -0.7
    _put(blocks, scores, f"ablation/{number}/zero:copying_accuracy_token", effect)
    prompts = [_prompt(f"p{i}", half, hostile and i == 1) for i in range(2)]
    for prompt in prompts:
        prompt["steps"] = steps[:: max(1, n_steps // 12)]
        for step in prompt["steps"]:
            strength = rise(middle)[steps.index(step)]
            _attend(blocks, attention, f"attention/{number}/{prompt['id']}/{step}", prompt, heads, strength, rng)
            blocks[f"predictions/{number}/{prompt['id']}/{step}"] = script_json(_predict(prompt, strength)).encode()
    name = HOSTILE[0] if hostile and number else f"run {number}"
    at = steps[middle]
    formed = [
        {
            "head": h,
            "step": at if h == heads - 1 else None,
            "low": steps[middle - 1] if h == heads - 1 else None,
            "high": steps[middle + 1] if h == heads - 1 else None,
            "state": "formed" if h == heads - 1 else "never",
        }
        for h in range(heads)
    ]
    early = steps[quarter]
    first = [
        {
            "head": h,
            "step": early if h == 1 else None,
            "low": early if h == 1 else None,
            "high": early * 2 if h == 1 else None,
            "state": "formed" if h == 1 else "never",
        }
        for h in range(heads)
    ]
    accuracy = rise(middle + 1)
    curve = lambda values, se=None: {"steps": steps, "values": values.tolist(), "se": se}  # noqa: E731
    many = list(range(0, steps[-1] + 1, 2))
    return {
        "name": name,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "steps": steps,
        "tokens": [s * 1024 for s in steps],
        "curves": {
            "train_loss": {"steps": many, "values": [5 * np.exp(-s / 200) + 2 for s in many], "se": None},
            "validation_loss": curve(5 * np.exp(-np.array(steps) / 200) + 2.1),
            "copying_accuracy_token": curve(accuracy, [0.02] * n_steps),
            "copying_accuracy_exact": curve(accuracy**3),
            "copying_loss_first": curve(np.full(n_steps, 7.0)),
            "copying_loss_second": curve(7 - 6 * accuracy),
            "task:recall pairs=4": curve(0.25 + 0.7 * accuracy, [0.03] * n_steps),
            "task:recall pairs=8": curve(0.125 + 0.5 * accuracy),
        },
        "tasks": [
            {
                "task": "recall",
                "beside": "task:recall pairs=8",
                "chance": {"task:recall pairs=4": 0.25, "task:recall pairs=8": 0.125},
            }
        ],
        "settled": {"step": 200, "low": 150, "high": 260, "rule": "a doubling brings less than 5 %"},
        "copying": {
            "step": at,
            "low": steps[middle - 1],
            "high": steps[middle + 1],
            "start": steps[middle - 1],
            "end": steps[min(middle + 2, n_steps - 1)],
            "level": 0.5,
            "rule": "10–90 % of the rise",
        },
        "story": _story(early, at, steps, heads - 1),
        "summary": [f"Summary of {name}.", HOSTILE[1] if hostile else "Nothing else."],
        "measures": list(tables),
        "formation": {"prefix_matching_sum": formed, "previous_token": first},
        "roles": [
            {
                "role": "previous-token head",
                "measure": "previous_token",
                "heads": [first[1] | {"peak": 0.96, "final": 0.9}],
            },
            {
                "role": f"induction head {HOSTILE[1]}" if hostile else "induction head",
                "measure": "prefix_matching_sum",
                "heads": [formed[-1] | {"peak": 0.9, "final": 0.9}],
            },
            {
                "role": "attention sink",
                "measure": "bos_sink",
                "heads": [
                    formed[-1] | {"step": None, "state": "from the start", "peak": 0.5, "final": 0.4},
                    first[1] | {"state": "formed, fell back", "peak": 0.6, "final": 0.1},
                    formed[0] | {"step": at, "state": "formed", "peak": 0.8, "final": 0.8},
                ],
            },
        ],
        "above_null": {"prefix_matching_sum": [heads - 1]},
        "ablations": {
            "zero:copying_accuracy_token": {"steps": ablated, "block": f"ablation/{number}/zero:copying_accuracy_token"}
        },
        "positions": {
            "edges": [1, 2, 4, 9],
            "steps": steps,
            "values": [[6.0 - row * k / n_steps for k in range(n_steps)] for row in range(3)],
        },
        "pairs": [
            {"step": at, "earlier": 1, "later": heads - 1, "k_composition": 0.4, "path_score": 0.2, "effect": -0.3},
            {"step": at, "earlier": 0, "later": heads - 1, "k_composition": 0.5, "path_score": 0.01, "effect": None},
        ],
        "prompts": prompts,
        "tables": {
            "order": {
                "title": "Order of appearance",
                "columns": ["stage", "step"],
                "rows": [["previous-token head", early], [HOSTILE[1], at], ["=cmd()", None]],
            }
        },
        "config": '[model]\nname = "</script>"',
        "provenance": {"where": HOSTILE[1]},
    }


def _story(early: int, at: int, steps: list[int], last: int) -> dict[str, Any]:
    """As `copyscope.analyses.page.entry` writes it, with steps 16 to 896 shown at first."""
    event = {"detail": "", "head": None, "step": None, "measure": ""}
    return {
        "events": [
            event | {"kind": "previous-token", "text": f"previous-token L0H1 at {early}", "step": early, "head": 1},
            event
            | {"kind": "induction", "text": f"induction at {at:,}", "detail": "300-500", "step": at, "head": last},
            event | {"kind": "copying", "text": "no copying"},
            event
            | {
                "kind": "removal",
                "text": f"removing it {HOSTILE[1]}",
                "step": steps[-1],
                "head": last,
                "measure": "zero:copying_accuracy_token",
            },
        ],
        "maps": ["previous_token", "prefix_matching_sum"],
        "from": 16 if steps[-1] > 896 else None,
        "to": 896 if steps[-1] > 896 else None,
    }


def _put(blocks: dict[str, bytes], scores: dict[str, np.ndarray], name: str, table: np.ndarray) -> None:
    scores[name] = table.astype("<f4")
    blocks[name] = scores[name].tobytes()


def _prompt(name: str, half: int, hostile: bool) -> dict[str, Any]:
    words = [*HOSTILE, *(f" w{i}" for i in range(half))][:half] if hostile else [f" w{i}" for i in range(half)]
    targets = [[q - half + 1] if q >= half else [] for q in range(2 * half)]
    return {
        "id": name,
        "title": "Hostile tokens" if hostile else "Repeated tokens",
        "tokens": words * 2,
        "targets": targets,
        "steps": [],
        "predictions": True,
    }


def _predict(prompt: dict[str, Any], strength: float) -> dict[str, Any]:
    """As `copyscope.analyses.page.predictions` has it: 0.01 for a token that was not there before, else `strength`, at
    most 0.9; the right one first, " other" second; the layers have half of it."""
    tokens = prompt["tokens"]
    p = [round(min(0.9, strength) if prompt["targets"][i] else 0.01, 4) for i in range(len(tokens) - 1)]
    top = [[[word, x], [" other", 0.05]] for word, x in zip([*tokens[1:], "end"], [*p, 0.5], strict=True)]
    layers = [{"p": [x / 2 for x in p], "top": [row[0] for row in top]} for _ in range(3)]
    return {"loss": [round(-float(np.log(max(x, 1e-4))), 4) for x in p], "p": p, "top": top, "layers": layers}


def _attend(
    blocks: dict[str, bytes],
    attention: dict[str, np.ndarray],
    name: str,
    prompt: dict[str, Any],
    heads: int,
    strength: float,
    rng: np.random.Generator,
) -> None:
    size = len(prompt["tokens"])
    pattern = np.tril(rng.random((heads, size, size)) * 0.1 + 1e-6)
    pattern[1, np.arange(1, size), np.arange(size - 1)] += 1
    for query, keys in enumerate(prompt["targets"]):
        for key in keys:
            pattern[-1, query, key] += 20 * strength
    pattern /= pattern.sum(-1, keepdims=True)
    attention[name] = np.round(pattern * 255).astype(np.uint8)
    rows, columns = np.tril_indices(size)
    blocks[name] = attention[name][:, rows, columns].tobytes()
