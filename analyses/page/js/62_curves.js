"use strict";
// Loss and copying curves (Plotly), on the same step axis as the map under them; the step cursor lies over them.
(function (C) {
  const LOOKS = [["#0072b2", "circle", "solid"], ["#d55e00", "diamond", "dash"], ["#009e73", "square", "dot"], ["#cc79a7", "x", "dashdot"], ["#e69f00", "triangle-up", "longdash"], ["#56b4e9", "star", "longdashdot"]];
  const LOSS = ["train_loss", "validation_loss"];
  const TOGETHER = [
    ["copying", "copying accuracy", ["copying_accuracy_token", "copying_accuracy_exact", "copying_accuracy_token_averaged"]],
    ["copying_loss", "loss on random tokens, first and second occurrence", ["copying_loss_first", "copying_loss_second"]],
    ["natural", "loss on natural text", ["natural_loss", "natural_loss_predictable", "natural_loss_other"]],
  ];
  const CONFIG = { showSendToCloud: false, displaylogo: false, responsive: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "pan2d"] };
  const [PANEL, BOTTOM] = [78, 40];
  const room = (narrow) => (narrow ? { top: 38, gap: 46, lift: 15 } : { top: 22, gap: 30, lift: 0 }); // a narrow page needs two lines above a panel
  C.plotlyConfig = CONFIG;
  C.lineLooks = LOOKS;
  C.modebar = () => ({ bgcolor: "rgba(0,0,0,0)", color: C.color("line"), activecolor: C.color("soft") });

  /** What the second panel can show: key -> {title, names}. */
  C.curveGroups = function (run) {
    const there = new Set(Object.keys(run.curves || {}));
    const out = {};
    for (const [key, title, names] of TOGETHER) {
      const known = names.filter((n) => there.has(n));
      if (known.length) out[key] = { title, names: known };
      for (const n of known) there.delete(n);
    }
    out.heads = { title: "the chosen and pinned heads", names: [] };
    for (const n of there) if (!LOSS.includes(n) && !C.data.isCalibration(n)) out[n] = { title: C.data.words(n).title, names: [n] };
    return out;
  };

  function lines(s, run) {
    const group = C.curveGroups(run)[s.curve];
    if (s.curve !== "heads") return group.names.map((n) => ({ name: shortTitle(n), ...run.curves[n], unit: C.data.words(n).unit }));
    const heads = [...new Set([C.head(), ...C.pins()])].slice(0, LOOKS.length);
    return heads.flatMap((h) => {
      const scores = C.data.scores(s.run, s.measure);
      if (!scores) return [];
      const values = scores.steps.map((_, i) => scores.values[i * scores.nHeads + h]);
      return [{ name: C.data.headName(run, h), steps: scores.steps, values, se: null, unit: C.data.words(s.measure).unit }];
    });
  }

  const SHORT = { train_loss: "training", validation_loss: "validation", copying_accuracy_token: "per token", copying_accuracy_exact: "whole suffix", copying_accuracy_token_averaged: "per token, mean of weights", copying_loss_first: "first occurrence", copying_loss_second: "second occurrence" };
  const shortTitle = (n) => SHORT[n] || C.data.words(n).title;

  function traces(found, axis, panel) {
    const suffix = panel === 1 ? "" : String(panel);
    return found.flatMap((line, i) => {
      const [color, symbol, dash] = LOOKS[i % LOOKS.length];
      const many = line.steps.length > 150;
      const x = line.steps.map((step) => axis.position(step));
      const shared = { xaxis: "x", yaxis: "y" + suffix, x };
      const out = [];
      if (line.se && line.se.some((e) => e > 0)) {
        const side = (sign) => line.values.map((v, k) => (v === null ? null : v + sign * 1.96 * (line.se[k] || 0)));
        out.push({ ...shared, y: side(-1), mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false });
        out.push({ ...shared, y: side(1), mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: color + "26", hoverinfo: "skip", showlegend: false });
      }
      out.push({
        ...shared, y: line.values, customdata: line.steps, name: C.plotlyText(line.name), legend: "legend" + suffix, connectgaps: false,
        mode: many ? "lines" : "lines+markers", line: { color, dash: many && i === 0 ? "solid" : dash, width: many ? 1.2 : 1.8 }, marker: { color, symbol, size: 5 },
        hovertemplate: `${C.plotlyText(line.name)}: %{y:.4g}${line.unit ? " " + C.plotlyText(line.unit) : ""}<br>step %{customdata:,}<extra></extra>`,
      });
      return out;
    });
  }

  /** At most 600 points a line: medians of even stretches of the axis. Heads and checkpoints are far fewer. */
  function thin(line, axis, most = 600) {
    if (line.steps.length <= most) return line;
    const cells = new Map();
    line.steps.forEach((step, i) => {
      const cell = Math.floor(((axis.position(step) - axis.low) / (axis.high - axis.low)) * most);
      if (cell < 0 || cell > most || line.values[i] === null) return;
      if (!cells.has(cell)) cells.set(cell, []);
      cells.get(cell).push(i);
    });
    const out = { ...line, steps: [], values: [], se: null };
    for (const indexes of [...cells.keys()].sort((a, b) => a - b).map((k) => cells.get(k))) {
      const values = indexes.map((i) => line.values[i]).sort((a, b) => a - b);
      out.steps.push(line.steps[indexes[indexes.length >> 1]]);
      out.values.push(values[values.length >> 1]);
    }
    return out;
  }

  function layout(s, run, axis, frame, titles) {
    const { top, gap, lift } = room(frame.narrow);
    const height = top + PANEL * 2 + gap + BOTTOM;
    const inner = PANEL * 2 + gap;
    const [ink, grid] = [C.color("soft"), C.color("line")];
    const ticks = axis.ticks(frame.plot < 420 ? 6 : 12);
    const panel = (from, to) => ({ domain: [from, to], gridcolor: grid, zeroline: false, fixedrange: true, tickfont: { size: 11 }, nticks: 4, automargin: false });
    const legend = (y) => ({ orientation: "h", x: 1, xanchor: "right", y, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)", font: { size: 11 } });
    const low = PANEL / inner;
    const note = (text, y) => ({ text: C.plotlyText(text), x: 0, xref: "paper", xanchor: "left", y, yref: "paper", yanchor: "bottom", yshift: lift, showarrow: false, font: { size: 12, color: C.color("ink") } });
    const shapes = [];
    const band = C.band(run, axis);
    if (band) shapes.push({ type: "rect", xref: "x", yref: "paper", x0: band[0], x1: band[1], y0: 0, y1: 1, line: { color: C.color("found"), width: 1, dash: "dash" }, fillcolor: "rgba(213,94,0,0.06)", layer: "below" });
    if (run.settled && run.settled.step !== null) {
      const x = axis.position(run.settled.step);
      if (x >= axis.low && x <= axis.high) shapes.push({ type: "line", xref: "x", yref: "y domain", x0: x, x1: x, y0: 0, y1: 1, line: { color: C.color("ink"), width: 1, dash: "dot" } });
    }
    const range = (values) => {
      const unit = values.every((v) => v >= 0 && v <= 1);
      return unit && (s.curve === "copying" || s.curve === "heads") ? [-0.03, 1.03] : null;
    };
    return {
      width: frame.width, height, margin: { l: frame.left, r: frame.right, t: top, b: BOTTOM }, template: "none", hovermode: "closest", dragmode: "zoom", showlegend: true,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { size: 12, family: "system-ui, sans-serif", color: ink }, shapes,
      annotations: [note(titles[0], 1), note(titles[1], low)],
      xaxis: { range: [axis.low, axis.high], tickvals: ticks.map(([at]) => at), ticktext: ticks.map(([, text]) => text), gridcolor: grid, zeroline: false, anchor: "y2", ticks: "outside", tickcolor: grid, title: { text: axis.title, standoff: 4, font: { size: 12 } } },
      yaxis: panel((PANEL + gap) / inner, 1), yaxis2: { ...panel(0, low), ...(range(titles[2]) ? { range: range(titles[2]) } : {}) },
      legend: legend(1), legend2: legend(low),
      modebar: { ...C.modebar(), orientation: "v" },
      hoverlabel: { bgcolor: C.color("paper"), font: { color: C.color("ink") }, bordercolor: grid },
    };
  }

  let ready = false;
  let drawn = "";
  /** Draws the curves when anything but the step changed. */
  C.drawCurves = function () {
    const [s, run] = [C.state(), C.run()];
    const holder = C.byId("curves-holder");
    const axis = C.currentAxis();
    const frame = C.frame(holder.clientWidth);
    const key = JSON.stringify([s.run, s.axis, s.from, s.to, s.curve, frame.width, C.isDark(), s.curve === "heads" && [s.head, s.pins, s.measure, !!C.data.scores(s.run, s.measure)], C.generation]);
    const { top, gap } = room(frame.narrow);
    holder.style.minHeight = top + PANEL * 2 + gap + BOTTOM + "px";
    if (key !== drawn) {
      drawn = key;
      C.working(
        C.library("plotly").then(async () => {
          if (drawn !== key) return;
          const loss = LOSS.filter((n) => run.curves[n]).map((n) => ({ name: shortTitle(n), ...run.curves[n], unit: "nats" }));
          const second = lines(s, run);
          const titles = ["Loss, nats per token", sentence(s, run, second), second.flatMap((l) => l.values.filter((v) => v !== null))];
          const all = [...traces(loss.map((l) => thin(l, axis)), axis, 1), ...traces(second.map((l) => thin(l, axis)), axis, 2)];
          const plot = C.byId("curves");
          await Plotly.react(plot, all, layout(s, run, axis, frame, titles), CONFIG);
          if (!ready) listen(plot);
          ready = true;
        })
      );
      C.byId("curves").setAttribute("aria-label", `Loss and ${C.curveGroups(run)[s.curve].title} over training. The Report tab has the numbers.`);
      C.fill(C.byId("curves-caption"), caption(run));
    }
    const x = axis.x(axis.position(s.step), frame.left, frame.plot);
    const line = C.byId("curves-cursor");
    line.hidden = x < frame.left - 1 || x > frame.left + frame.plot + 1;
    line.style.transform = `translateX(${x}px)`;
    line.style.top = top + "px";
    line.style.height = PANEL * 2 + gap + "px";
  };

  function sentence(s, run, found) {
    const title = s.curve === "heads" ? C.data.words(s.measure).title : C.curveGroups(run)[s.curve].title;
    const unit = found.length && found[0].unit;
    return title[0].toUpperCase() + title.slice(1) + (unit ? ", " + unit : "");
  }

  function caption(run) {
    const words = [];
    if (run.settled && run.settled.step !== null) words.push(`Dotted line: the loss had plateaued at step ${C.number(Math.round(run.settled.step))}${run.settled.rule ? ` (${C.ruleWords(run.settled.rule)})` : ""}.`);
    words.push("Shading: 95 % interval over prompts. Drag sideways to zoom, double-click to zoom out.");
    return words.join(" ");
  }

  function listen(plot) {
    plot.on("plotly_relayout", (change) => {
      const axis = C.currentAxis();
      if ("xaxis.range[0]" in change) C.zoom(axis, change["xaxis.range[0]"], change["xaxis.range[1]"]);
      else if (change["xaxis.autorange"]) {
        drawn = "";
        C.go({ from: null, to: null });
      }
    });
    plot.on("plotly_click", (event) => C.go({ step: C.data.nearest(C.run().steps, event.points[0].customdata) }));
  }

  /** A rule without the name of what it is a rule for. */
  C.ruleWords = (rule) => rule.replace(/^(loss settled|phase change): /, "");

  /** Zooms to two positions of an axis; both ends are whole steps. */
  C.zoom = function (axis, one, other) {
    const [low, high] = [Math.min(one, other), Math.max(one, other)];
    C.go({ from: Math.floor(axis.step(low)), to: Math.ceil(axis.step(high)) });
  };

  /** The phase-change band in positions, cut to the axis; null where copying has not formed. */
  C.band = function (run, axis) {
    const found = run.copying;
    if (!found || found.start === null || found.start === undefined || found.end === null) return null;
    const [low, high] = [axis.position(Math.max(found.start, 0)), axis.position(found.end)];
    if (high <= axis.low || low >= axis.high) return null;
    return [Math.max(low, axis.low), Math.min(high, axis.high)];
  };
})(Copyscope);
