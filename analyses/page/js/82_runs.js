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
    runs.forEach((run, i) => {
      const line = (run.curves || {})[curve];
      const x = line && places(run, line, s.align);
      if (x) drawn.push({ run, i, x, y: line.values });
      else left.push(run.name);
    });
    const place = C.byId("runs-plot");
    C.once(place, JSON.stringify([curve, s.align, place.clientWidth, C.isDark(), C.generation]), () =>
      C.working(
        C.library("plotly").then(() => {
          const grid = C.color("line");
          const traces = drawn.map(({ run, i, x, y }) => {
            const [color, symbol, dash] = C.lineLooks[i % C.lineLooks.length];
            return { x, y, name: C.plotlyText(run.name), mode: x.length > 150 ? "lines" : "lines+markers", line: { color, dash }, marker: { symbol, size: 5, color }, hovertemplate: `${C.plotlyText(run.name)}: %{y:.4g} at %{x:,.4g}<extra></extra>` };
          });
          const title = { step: "step", tokens: "tokens", formation: "step ÷ the run's own formation step" }[s.align];
          const frame = C.frame(place.clientWidth);
          return Plotly.react(
            place,
            traces,
            {
              width: frame.width, height: 260, margin: { l: frame.left, r: 20, t: 30, b: 44 }, template: "none", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: true,
              font: { size: 12, family: "system-ui, sans-serif", color: C.color("soft") }, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
              xaxis: { type: "log", title: { text: title }, gridcolor: grid, exponentformat: "SI" }, modebar: C.modebar(), yaxis: { gridcolor: grid, zeroline: false, title: { text: C.plotlyText(words.unit || words.scale || "") } },
            },
            C.plotlyConfig
          );
        })
      )
    );
    const found = (run) => run.copying || {};
    C.table(C.byId("runs-table"), {
      title: "When copying formed", name: "runs",
      columns: ["run", "step", "95 % from", "to", "last value"],
      rows: runs.map((run) => {
        const line = (run.curves || {})[curve];
        return [run.name, ...[found(run).step, found(run).low, found(run).high].map((v) => (v === null || v === undefined ? null : Math.round(v))), line ? line.values[line.values.length - 1] : null];
      }),
      note: left.length ? `Not in the figure, because it cannot be aligned this way: ${left.join(", ")}.` : "",
    });
  };
})(Copyscope);
