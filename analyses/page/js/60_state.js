"use strict";
// What is being looked at, as one flat object; it lives in the address, so that a link brings the view back.
(function (C) {
  C.VIEWS = [["family", "Forks"], ["map", "Training"], ["attention", "Attention"], ["compare", "Compare"], ["circuit", "Circuit"], ["heads", "Heads"], ["report", "Report"]];
  C.SORTS = [["layer", "layer and head"], ["now", "score at this step"], ["final", "final score"], ["formation", "formation step"], ["effect", "effect of removal"]];
  C.FILTERS = [["all", "all heads"], ["formed", "formed"], ["null", "above chance at the end"], ["pinned", "pinned"]];
  C.ROWS = [["heads", "every head"], ["layers", "layers (highest head)"]];
  C.POOLS = [["", "the chosen head"], ["layer", "mean of its layer"], ["mean", "mean of all heads"], ["max", "largest of all heads"]];
  C.PICTURES = [["matrix", "a matrix"], ["lines", "lines"]];
  const NUMBERS = ["run", "step", "a", "b", "runb", "query", "from", "to", "cut"];
  const TEXTS = ["measure", "head", "prompt", "axis", "view", "pins", "sort", "filter", "rows", "beside", "curve", "align", "flip", "theme", "headb", "text", "pairs", "without", "pool", "picture"];
  C.FIELDS = [...NUMBERS, ...TEXTS];
  const CUT = 25; // per cent of the strongest pair, from which a pair is drawn
  const MAX_LINK = 2000; // characters of a typed prompt that still go into the address
  const PREFERRED = ["prefix_matching_sum", "induction_score", "induction_attention"];

  let state = {};
  C.state = () => state;

  /** The views of this page: the first is of forks, where there are any. */
  C.views = () => C.VIEWS.filter(([view]) => view !== "family" || C.hasFamily());

  /** The number of head 3.1, which may also be written L3H1; null if the model has none such. */
  C.headNumber = function (run, text) {
    const match = /^L?(\d+)[.H](\d+)$/i.exec(text || "");
    if (!match) return null;
    const [layer, head] = [Number(match[1]), Number(match[2])];
    return layer < run.n_layers && head < run.n_heads ? layer * run.n_heads + head : null;
  };
  C.headText = (run, head) => `${Math.floor(head / run.n_heads)}.${head % run.n_heads}`;

  /** Measures one may choose: scores without their calibrations, then effects of removal. */
  C.choices = function (run) {
    return {
      scores: run.measures.filter((m) => !C.data.isCalibration(m) || m.endsWith("_value_weighted")),
      effects: Object.keys(run.ablations || {}).filter((m) => !/_(se|control|matched|p)$/.test(m)),
    };
  };

  /** The measure whose formation speaks for `measure`: itself, or for an effect the default one. */
  C.defaultMeasure = function (run) {
    const { scores, effects } = C.choices(run);
    return PREFERRED.find((m) => scores.includes(m)) || scores[0] || effects[0] || null;
  };

  C.headB = () => C.headNumber(C.data.index.runs[state.runb], state.headb || state.head);

  /** The highest head at the last checkpoint, where the scores are here already; else head 0. */
  function bestHead(runIndex, measure) {
    const run = C.data.index.runs[runIndex];
    const rows = (run.formation || {})[measure] || [];
    const formed = rows.filter((row) => row.step !== null).sort((x, y) => x.step - y.step);
    const scores = measure ? C.data.scores(runIndex, measure) : undefined;
    if (!scores) return formed.length ? formed[0].head : 0;
    let best = 0;
    const last = (scores.steps.length - 1) * scores.nHeads;
    for (let h = 1; h < scores.nHeads; h++) if (scores.values[last + h] > scores.values[last + best]) best = h;
    return best;
  }

  const IN_RUN = ["measure", "beside", "prompt", "curve"];
  const NAMES = { runb: "run", beside: "measure", curve: "curves" };
  /** Every field filled in and within range; `said` collects what had to be corrected. */
  C.normal = function (raw, said = []) {
    const { index } = C.data;
    const s = { ...raw };
    const pick = (field, allowed, fallback) => {
      if (allowed.includes(s[field])) return;
      if (s[field] !== undefined && s[field] !== null) said.push(`This ${IN_RUN.includes(field) ? "run" : "page"} has no ${NAMES[field] || field} '${s[field]}'; showing ${fallback}.`);
      s[field] = fallback;
    };
    pick("run", index.runs.map((_, i) => i), 0);
    const run = index.runs[s.run];
    const { scores, effects } = C.choices(run);
    pick("measure", [...scores, ...effects], C.defaultMeasure(run));
    pick("view", C.views().map(([v]) => v), C.hasFamily() && index.runs.length > 1 ? "family" : "map");
    pick("axis", C.AXES.map(([v]) => v), "log");
    if (s.axis === "tokens" && !C.hasTokens(run)) {
      said.push("This series does not record tokens; showing steps.");
      s.axis = "log";
    }
    for (const [field, names] of [["sort", C.SORTS], ["filter", C.FILTERS], ["rows", C.ROWS], ["picture", C.PICTURES]]) pick(field, names.map(([v]) => v), names[0][0]);
    const pair = (run.story || {}).maps || [];
    pick("beside", ["none", ...scores, ...effects], (pair.includes(s.measure) && pair.find((m) => m !== s.measure && scores.includes(m))) || "none");
    pick("theme", ["", "light", "dark"], "");
    pick("align", C.ALIGN().map(([key]) => key), "step");
    pick("flip", ["", "1"], "");
    pick("without", ["", "1"], "");
    pick("pool", C.POOLS.map(([key]) => key), "");
    const kinds = C.pairMeasures(run).map(([key]) => key);
    pick("pairs", [...kinds, ""], kinds[0] || "");
    if (!(s.cut >= 0 && s.cut <= 100)) s.cut = CUT;
    pick("curve", Object.keys(C.curveGroups(run)), Object.keys(C.curveGroups(run))[0] || "");
    pick("runb", index.runs.map((_, i) => i), s.run);
    for (const [field, { steps }, first] of [["step", run, false], ["a", run, true], ["b", index.runs[s.runb], false]]) {
      if (steps.includes(s[field])) continue;
      const fallback = steps[first ? 0 : steps.length - 1];
      if (s[field] === undefined || s[field] === null) s[field] = fallback ?? null;
      else {
        const near = C.data.nearest(steps, s[field]);
        said.push(`Step ${C.number(s[field])} was not scored; showing ${C.number(near)}, the nearest.`);
        s[field] = near;
      }
    }
    if (s.from === undefined && s.to === undefined) Object.assign(s, C.storyRange(run));
    for (const field of ["from", "to"]) if (typeof s[field] !== "number" || !(s[field] >= 0)) s[field] = null;
    if (s.from !== null && s.to !== null && s.from >= s.to) [s.from, s.to] = [null, null];
    const head = C.headNumber(run, s.head);
    if (head === null && s.head) said.push(`This model has no head ${s.head}; showing another.`);
    s.head = C.headText(run, head ?? bestHead(s.run, s.measure));
    const runB = index.runs[s.runb];
    const same = runB.n_layers === run.n_layers && runB.n_heads === run.n_heads;
    // In a model of another shape, B is a head of its own: the one that scores highest there.
    s.headb = same ? "" : C.headText(runB, C.headNumber(runB, s.headb) ?? bestHead(s.runb, s.measure));
    const pins = (s.pins || "").split(",").map((pin) => C.headNumber(run, pin)).filter((pin) => pin !== null);
    s.pins = [...new Set(pins)].map((pin) => C.headText(run, pin)).join(",");
    const prompts = run.prompts.map((p) => p.id);
    pick("prompt", prompts, prompts[0] ?? null);
    // A typed prompt travels with its text, so that a link or a reload can ask for it again.
    const typed = (C.data.prompt(s.run, s.prompt) || {}).text || "";
    s.text = typed.length <= MAX_LINK ? typed : "";
    const prompt = C.data.prompt(s.run, s.prompt);
    const last = prompt ? prompt.tokens.length - 1 : 0;
    if (!(Number.isInteger(s.query) && s.query >= 0 && s.query <= last)) {
      if (s.query !== undefined && s.query !== null) said.push(`This prompt has no token ${s.query}.`);
      s.query = prompt ? firstWithTarget(prompt) : 0;
    }
    return s;
  };

  /** The last token that an induction head would answer for, else the last one. */
  function firstWithTarget(prompt) {
    for (let q = prompt.tokens.length - 1; q >= 0; q--) if ((prompt.targets[q] || []).length) return q;
    return prompt.tokens.length - 1;
  }

  /** The fields of an address; what is no number where one belongs goes to `said`. */
  C.readHash = function (hash, said = []) {
    const out = {};
    for (const [key, value] of new URLSearchParams(hash.replace(/^#/, ""))) {
      if (NUMBERS.includes(key)) {
        if (value === "" && (key === "from" || key === "to")) out[key] = null; // all steps, where the page would begin with some
        else if (value !== "" && Number.isFinite(Number(value))) out[key] = Number(value);
        else said.push(`${key}=${value} is not a number.`);
      } else if (TEXTS.includes(key)) out[key] = value;
    }
    return out;
  };

  C.writeHash = function () {
    const parts = [];
    for (const key of [...NUMBERS.slice(0, 2), ...TEXTS, ...NUMBERS.slice(2)]) {
      const value = state[key];
      if (key === "from" && value === null && state.to === null && Object.values(C.storyRange(C.run())).some((v) => v !== null)) parts.push("from=");
      if (value === null || value === undefined || value === "") continue;
      if ((key === "run" || key === "runb") && C.data.index.runs.length < 2) continue;
      if (key === "cut" && value === CUT) continue;
      if (["sort", "filter", "rows", "align", "picture"].includes(key) && ["layer", "all", "heads", "step", "matrix"].includes(value)) continue;
      parts.push(key + "=" + encodeURIComponent(value).replace(/%2C/g, ",").replace(/%3A/g, ":"));
    }
    return "#" + parts.join("&");
  };

  let timer = null;
  function remember(view) {
    clearTimeout(timer);
    const write = (how) => {
      try {
        history[how](null, "", C.writeHash());
      } catch {
        // a sandboxed frame has no history; the page works without
      }
    };
    if (view) write("pushState"); // so that Back leads to the view before, not out of the page
    else timer = setTimeout(() => write("replaceState"), 150); // browsers refuse more than a few changes a second
  }

  /** Changes what is looked at and draws; `said`: words about what was wrong with the wish; `back`: the address has it already. */
  C.go = function (patch, said = [], back = false) {
    const before = state;
    const wanted = { ...state, ...patch };
    const newest = C.data.index.runs[wanted.run ?? 0]?.steps.at(-1);
    if (patch.step !== undefined && patch.step !== newest) C.stopFollowing();
    if (patch.run !== undefined && patch.run !== before.run) {
      // Another run has heads, prompts and checkpoints of its own; keep what exists there, silently.
      const run = C.data.index.runs[patch.run];
      if (run) {
        for (const field of ["step", "a"]) if (patch[field] === undefined) wanted[field] = C.data.nearest(run.steps, wanted[field]);
        if (before.runb === before.run && patch.runb === undefined) wanted.runb = patch.run; // B was in the same run and stays so
        if (!run.prompts.some((p) => p.id === wanted.prompt)) wanted.prompt = undefined;
        const { scores, effects } = C.choices(run);
        for (const field of ["measure", "beside"]) if (![...scores, ...effects, "none"].includes(wanted[field])) wanted[field] = undefined;
        if (!C.pairMeasures(run).some(([key]) => key === wanted.pairs)) wanted.pairs = undefined;
        const story = C.storyRange(C.data.index.runs[before.run] || run);
        if (patch.from === undefined && patch.to === undefined && before.from === story.from && before.to === story.to) wanted.from = wanted.to = undefined;
        if (C.headNumber(run, wanted.head) === null) wanted.head = undefined;
        if (!Object.keys(C.curveGroups(run)).includes(wanted.curve)) wanted.curve = undefined;
      }
    }
    const runB = C.data.index.runs[wanted.runb];
    if (runB && wanted.runb !== before.runb && patch.b === undefined && wanted.b !== undefined) wanted.b = C.data.nearest(runB.steps, wanted.b);
    if (patch.measure !== undefined && patch.measure === before.beside && patch.beside === undefined) wanted.beside = before.measure; // not the same map twice
    if (wanted.prompt !== before.prompt && patch.query === undefined) wanted.query = undefined;
    state = C.normal(wanted, said);
    const turned = before.view !== undefined && state.view !== before.view;
    if (turned) window.scrollTo(0, 0); // another view begins at its top
    C.notice(said.join(" "), "note");
    remember(turned && !back);
    C.redraw();
  };

  C.run = () => C.data.index.runs[state.run];
  C.head = () => C.headNumber(C.run(), state.head);
  C.pins = () => (state.pins ? state.pins.split(",").map((p) => C.headNumber(C.run(), p)) : []);
  C.togglePin = function (head) {
    const text = C.headText(C.run(), head);
    const pins = state.pins ? state.pins.split(",") : [];
    C.go({ pins: (pins.includes(text) ? pins.filter((p) => p !== text) : [...pins, text]).join(",") });
  };
  C.moveStep = function (by) {
    const { steps } = C.run();
    const at = Math.max(0, Math.min(steps.length - 1, steps.indexOf(state.step) + by));
    if (steps[at] !== state.step) C.go({ step: steps[at] });
  };
  C.currentAxis = () => C.axis(C.run(), state.axis, state.from, state.to);

  /** The effect that stands for "removing the head": the measure looked at if it is one, else of copying accuracy or loss. */
  C.effectKey = function (run) {
    const { effects } = C.choices(run);
    if (effects.includes(state.measure)) return state.measure;
    const plain = [...effects].sort((x, y) => y.startsWith("zero:") - x.startsWith("zero:")); // the plainest way of removing first
    return plain.find((m) => m.endsWith(":copying_accuracy_token")) || plain.find((m) => m.endsWith(":copying_loss")) || plain[0] || null;
  };
  /** A score's measure even while an effect is looked at: formation, null and selectivity belong to it. */
  C.scoreMeasure = (run) => (state.measure && !state.measure.includes(":") ? state.measure : C.defaultMeasure(run));

  /** Heads in the order and choice that the reader asked for; the map, the grid and the table all follow it. */
  C.orderedHeads = function () {
    const run = C.run();
    const measure = state.measure;
    const score = C.scoreMeasure(run);
    let heads = [...Array(run.n_layers * run.n_heads).keys()];
    if (state.filter === "formed") heads = heads.filter((h) => (C.data.formation(run, score, h) || {}).step != null);
    if (state.filter === "null") heads = heads.filter((h) => C.data.isAbove(run, score, h));
    if (state.filter === "pinned") heads = heads.filter((h) => C.pins().includes(h));
    const last = (name, h, step) => {
      const scores = name && C.data.scores(state.run, name);
      return scores ? C.data.value(state.run, name, h, step ?? scores.steps[scores.steps.length - 1]) ?? -Infinity : -Infinity;
    };
    const effect = C.effectKey(run);
    const keys = {
      now: (h) => -last(measure, h, state.step),
      final: (h) => -last(measure, h),
      formation: (h) => (C.data.formation(run, score, h) || {}).step ?? Infinity,
      effect: (h) => -Math.abs(last(effect, h)),
    };
    const key = keys[state.sort];
    if (key) {
      const known = new Map(heads.map((h) => [h, key(h)]));
      heads.sort((x, y) => (known.get(x) === known.get(y) ? x - y : known.get(x) - known.get(y)));
      return heads;
    }
    return state.flip ? heads.reverse() : heads;
  };
})(Copyscope);
