"use strict";
// Where a step goes: a log axis with a slot of its own for step 0, a linear one, or tokens. Positions are plain numbers.
(function (C) {
  const SLOT = 0.04; // width of step 0's slot, as a share of the axis
  const FIRST_HALF = 0.15; // half-width of the first and last cell, in decades, at most

  C.AXES = [["log", "steps, log scale"], ["linear", "steps, linear"], ["tokens", "tokens, log scale"]];

  /** tokens(step) by straight lines between the known pairs; null where none is known. */
  function tokensOf(run) {
    const known = run.steps.map((step, i) => [step, run.tokens ? run.tokens[i] : null]).filter(([, t]) => t !== null && t !== undefined);
    if (known.length < 2) return null;
    return function (step) {
      let i = known.findIndex(([s]) => s >= step);
      if (i < 1) i = i < 0 ? known.length - 1 : 1;
      const [[s0, t0], [s1, t1]] = [known[i - 1], known[i]];
      return t0 + ((t1 - t0) * (step - s0)) / (s1 - s0);
    };
  }
  C.hasTokens = (run) => tokensOf(run) !== null;

  /** kind: log | linear | tokens; from, to: steps that zooming leaves, or null. */
  C.axis = function (run, kind, from = null, to = null) {
    const tokens = kind === "tokens" ? tokensOf(run) : null;
    const amount = tokens || ((step) => step);
    const log = kind !== "linear";
    const positive = run.steps.filter((s) => amount(s) > 0);
    const plain = log ? (step) => Math.log10(Math.max(amount(step), 1e-9)) : amount;
    const edgesOf = (steps) => cellEdges(steps.map(plain), log);
    const all = edgesOf(positive.length ? positive : [1, 10]);
    let low = all[0];
    let high = all[all.length - 1];
    let zero = null;
    const width = SLOT * (high - low);
    const hasZero = run.steps.some((s) => amount(s) <= 0);
    if (log && hasZero) {
      zero = [low - 1.5 * width, low - 0.5 * width];
      low = zero[0];
    } else if (!log && hasZero) low = Math.min(low, cellEdges(run.steps.map(plain), false)[0]);
    const middle = zero ? (zero[0] + zero[1]) / 2 : low;
    const position = (step) => (log && amount(step) <= 0 ? middle : plain(step));
    const whole = [low, high];
    if (from !== null && position(from) > low) low = log && amount(from) <= 0 ? low : position(from);
    if (to !== null && position(to) < high) high = position(to);
    if (!(high > low)) [low, high] = whole;
    const last = run.steps[run.steps.length - 1];

    return {
      kind, low, high, whole, zero, position,
      title: kind === "tokens" ? "tokens (log scale)" : log ? "step (log scale)" : "step",
      /** The step at a position, not rounded; step 0 inside its slot. */
      step(at) {
        if (zero && at <= zero[1] + 0.25 * width) return 0;
        const value = log ? 10 ** at : at;
        return Math.max(0, tokens ? inverse(tokens, value, last) : value);
      },
      /** Cells of ascending `steps` as [left, right, index]. */
      cells(steps) {
        const rest = steps.map((s, i) => [s, i]).filter(([s]) => !(zero && amount(s) <= 0));
        const edges = edgesOf(rest.map(([s]) => s));
        const out = rest.map(([, i], k) => [edges[k], edges[k + 1], i]);
        if (zero && steps.length && amount(steps[0]) <= 0) out.unshift([zero[0], zero[1], 0]);
        return out;
      },
      ticks(most) {
        const found = log ? logTicks(zero ? Math.max(zero[1], low) : low, high, most) : linearTicks(low, high, most);
        if (zero && low <= middle) found.unshift([middle, "0"]);
        return found;
      },
      /** x in pixels of a position, for a plot `left` … `left + width`. */
      x: (at, left, plotWidth) => left + ((at - low) / (high - low)) * plotWidth,
      at: (x, left, plotWidth) => low + ((x - left) / plotWidth) * (high - low),
    };
  };

  function cellEdges(at, log) {
    if (!at.length) return [];
    const between = at.slice(1).map((x, i) => (x + at[i]) / 2);
    const most = log ? FIRST_HALF : Infinity;
    const alone = log ? FIRST_HALF : 0.5;
    const first = between.length ? Math.min(between[0] - at[0], most) : alone;
    const end = between.length ? Math.min(at[at.length - 1] - between[between.length - 1], most) : alone;
    return [at[0] - first, ...between, at[at.length - 1] + end];
  }

  function inverse(tokens, value, last) {
    let [low, high] = [0, Math.max(last * 2, 1)];
    for (let i = 0; i < 60; i++) {
      const middle = (low + high) / 2;
      if (tokens(middle) < value) low = middle;
      else high = middle;
    }
    return high;
  }

  function logTicks(low, high, most) {
    for (const factors of [...(high - low < 1.7 ? [[1, 1.5, 2, 3, 5, 7]] : []), [1, 2, 5], [1]]) {
      const out = [];
      for (let exponent = Math.floor(low); exponent <= Math.ceil(high); exponent++)
        for (const factor of factors) {
          const at = exponent + Math.log10(factor);
          if (at >= low - 1e-9 && at <= high + 1e-9) out.push([at, C.stepLabel(factor * 10 ** exponent)]);
        }
      if (factors.length === 1 && out.length < 2) return linearTicks(10 ** low, 10 ** high, most).filter(([v]) => v > 0).map(([v, text]) => [Math.log10(v), text]);
      if (out.length <= most && out.length > 1) return out;
      if (factors.length === 1) return out.filter((_, i) => i % Math.ceil(out.length / most) === 0);
    }
    return [];
  }

  function linearTicks(low, high, most) {
    const rough = (high - low) / Math.max(most, 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const unit = [1, 2, 5, 10].map((f) => f * power).find((u) => u >= rough) || power;
    const out = [];
    for (let k = Math.ceil(low / unit); k * unit <= high; k++) if (k * unit >= 0) out.push([k * unit, C.stepLabel(k * unit)]);
    return out;
  }

  /** Margins shared by curves and maps, so that one step has one x in all of them. */
  C.frame = function (width) {
    const narrow = width < 560;
    const left = narrow ? 46 : 62;
    const right = narrow ? 44 : 64;
    return { left, right, width, narrow, plot: Math.max(60, width - left - right) };
  };
})(Copyscope);
