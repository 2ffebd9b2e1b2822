"use strict";
// One curve of every run, aligned by step, by tokens, at the fork, or by each run's own formation of copying. Forks share their parent's
// line up to the step at which they were forked.
(function (C) {
  let curve = null;
  C.runsCurve = function (name) {
    curve = name;
    C.redraw();
  };
  C.ALIGN = () => [["step", "step"], ["tokens", "tokens"], ...(C.hasFamily() ? [["fork", "steps after the fork"]] : []), ["formation", "step ÷ formation step of copying"]];
  const AXIS = { step: "step", tokens: "tokens", fork: "steps after the fork", formation: "step ÷ the run's own formation step" };

  function names(runs) {
    const all = [...new Set(runs.flatMap((run) => Object.keys(run.curves || {})))].filter((n) => !C.data.isCalibration(n));
    return all.sort((x, y) => (y === "copying_accuracy_token") - (x === "copying_accuracy_token"));
  }

  /** x of each step of a curve: steps, tokens, or steps over the run's own formation step; null where that is not known. */
  function places(run, line, align) {
    if (align === "step") return line.steps;
    if (align === "formation") return run.copying && run.copying.step ? line.steps.map((step) => step / run.copying.step) : null;
    if (!C.hasTokens(run)) return null;
    const axis = C.axis(run, "tokens");
    return line.steps.map((step) => (step > 0 ? 10 ** axis.position(step) : 0));
  }

  /** The lines drawn: {name, steps, values, look, silent}; `left` collects the runs that cannot be aligned. */
  function lines(runs, align, left) {
    const out = [];
    const parts = C.branchParts(align);
    left.push(...runs.filter((_, i) => !parts.some((part) => part.run === i)).map((run) => run.name));
    for (const part of parts) {
      const run = runs[part.run];
      const line = (run.curves || {})[curve];
      const x = line && (part.shift === null ? places(run, line, align) : line.steps.map((step) => step - part.shift));
      if (!x) {
        if (!left.includes(run.name)) left.push(run.name);
        continue;
      }
      const known = line.steps.map((_, i) => i);
      const first = Math.max(0, line.steps.findLastIndex((step) => step <= part.from)); // so that the line begins on its parent's
      const shown = known.filter((i) => i >= first && line.steps[i] <= part.to && (part.shift === null || x[i] >= 0));
      out.push({ name: part.name, steps: shown.map((i) => x[i]), values: shown.map((i) => line.values[i]), se: null, look: part.look, silent: part.silent });
    }
    return out;
  }

  /** Draws it into `home`, a view; in the view of forks around them, and without the table that stands there already. */
  C.drawRuns = function (home) {
    const s = C.state();
    const { runs } = C.data.index;
    const ofForks = s.view === "family";
    const whole = C.byId("compare-runs");
    if (whole.parentElement !== home) home.append(whole);
    whole.hidden = runs.length < 2 && !ofForks;
    if (whole.hidden) return;
    const known = names(runs);
    if (!known.includes(curve)) curve = known[0];
    C.options(C.byId("runs-curve"), [["", known.map((n) => [n, C.data.words(n).title])]], curve);
    C.options(C.byId("align"), [["", C.ALIGN()]], s.align);
    C.byId("runs-title").textContent = ofForks ? "Their curves" : "Runs compared";
    const words = C.data.words(curve);
    const left = [];
    const drawn = lines(runs, s.align, left);
    const place = C.byId("runs-plot");
    C.runsShown = drawn.map(({ name, steps, values }) => ({ name, x: steps, y: values }));
    C.once(place, JSON.stringify([curve, s.align, s.axis, s.view, place.clientWidth, C.isDark(), C.generation]), () => {
      if (!drawn.length) return C.fill(place, C.el("p", { class: "note" }, "No run can be aligned this way."));
      // What lies along the axis are no steps of one run, but all the places of all runs.
      const all = { steps: [...new Set(drawn.flatMap((line) => line.steps))].sort((x, y) => x - y) };
      const kind = s.align === "fork" || (ofForks && s.align === "step" && s.axis === "linear") ? "linear" : "log";
      const axis = C.axis(all, kind, ofForks && s.align === "step" ? C.familyFrom() : null);
      axis.title = AXIS[s.align] + (kind === "log" ? " (log scale)" : "");
      const title = words.title + (words.unit || words.scale ? `, ${words.unit || words.scale}` : "");
      return C.fill(place, C.lineChart({ panels: [{ title, lines: drawn.map((line) => ({ ...line, name: C.shortText(line.name, C.isNarrow() ? 40 : 60) })) }], axis, frame: C.frame(place.clientWidth), height: 190, name: `${words.title} of every run` }).svg);
    });
    const found = (run) => run.copying || {};
    C.byId("runs-table").hidden = ofForks;
    C.table(C.byId("runs-table"), {
      title: "When copying formed", name: "runs",
      columns: ["run", "step", "95 % from", "to", "last value"],
      rows: runs.map((run) => {
        const line = (run.curves || {})[curve];
        return [run.name, ...[found(run).step, found(run).low, found(run).high].map((v) => (v === null || v === undefined ? null : Math.round(v))), line ? line.values[line.values.length - 1] : null];
      }),
      tidy: () => ({
        columns: ["run", "copying_step", "low", "high", "curve", "last_step", "last_value", "standard_error"],
        rows: runs.map((run) => {
          const line = (run.curves || {})[curve];
          const error = line && line.se ? line.se.at(-1) : null;
          return [run.name, found(run).step ?? null, C.meant(found(run).low), C.meant(found(run).high), curve, line ? line.steps.at(-1) : null, line ? C.meant(line.values.at(-1), error) : null, C.meant(error, null, 2)];
        }),
      }),
      note: left.length ? `Not in the figure, because it cannot be aligned this way: ${left.join(", ")}.` : "",
    });
  };
})(Copyscope);
