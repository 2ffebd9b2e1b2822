"use strict";
// One curve of every run, aligned by step, by tokens or by each run's own formation of copying.
(function (C) {
  let curve = null;
  C.runsCurve = function (name) {
    curve = name;
    C.redraw();
  };

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

  C.drawRuns = function () {
    const s = C.state();
    const { runs } = C.data.index;
    const known = names(runs);
    if (!known.includes(curve)) curve = known[0];
    C.options(C.byId("runs-curve"), [["", known.map((n) => [n, C.data.words(n).title])]], curve);
    C.options(C.byId("align"), [["", [["step", "step"], ["tokens", "tokens"], ["formation", "step ÷ formation step of copying"]]]], s.align);
    const words = C.data.words(curve);
    const drawn = [];
    const left = [];
    runs.forEach((run) => {
      const line = (run.curves || {})[curve];
      const x = line && places(run, line, s.align);
      if (x) drawn.push({ name: run.name, steps: x, values: line.values, se: null });
      else left.push(run.name);
    });
    const place = C.byId("runs-plot");
    C.runsShown = drawn.map(({ name, steps, values }) => ({ name, x: steps, y: values }));
    C.once(place, JSON.stringify([curve, s.align, place.clientWidth, C.isDark(), C.generation]), () => {
      if (!drawn.length) return C.fill(place, C.el("p", { class: "note" }, "No run can be aligned this way."));
      // What lies along the axis are no steps of one run, but all the places of all runs.
      const axis = C.axis({ steps: [...new Set(drawn.flatMap((line) => line.steps))].sort((x, y) => x - y) }, "log");
      axis.title = { step: "step (log scale)", tokens: "tokens (log scale)", formation: "step ÷ the run's own formation step (log scale)" }[s.align];
      const title = words.title + (words.unit || words.scale ? `, ${words.unit || words.scale}` : "");
      return C.fill(place, C.lineChart({ panels: [{ title, lines: drawn }], axis, frame: C.frame(place.clientWidth), height: 190, name: `${words.title} of every run` }).svg);
    });
    const found = (run) => run.copying || {};
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
