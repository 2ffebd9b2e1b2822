"use strict";
// Loss and copying curves, on the same step axis as the maps under them; the step cursor lies over them.
(function (C) {
  const LOSS = ["train_loss", "validation_loss"];
  const TOGETHER = [
    ["copying", "copying accuracy", ["copying_accuracy_token", "copying_accuracy_exact", "copying_accuracy_token_averaged"]],
    ["copying_loss", "loss on random tokens, first and second occurrence", ["copying_loss_first", "copying_loss_second"]],
    ["natural", "loss on natural text", ["natural_loss", "natural_loss_predictable", "natural_loss_other"]],
  ];

  /** What the second panel can show: key -> {title, names}. */
  C.curveGroups = function (run) {
    const there = new Set(Object.keys(run.curves || {}));
    const out = {};
    for (const [key, title, names] of TOGETHER) {
      const known = names.filter((n) => there.has(n));
      if (known.length) out[key] = { title, names: known };
      for (const n of known) there.delete(n);
    }
    const tasks = run.tasks || [];
    const beside = tasks.map((one) => one.beside).filter((n) => n && there.has(n));
    if (beside.length) out.tasks = { title: "in-context tasks beside copying", names: [...["copying_accuracy_token"].filter((n) => run.curves[n]), ...beside] };
    for (const { task, chance } of tasks) {
      const known = Object.keys(chance).filter((n) => there.has(n));
      if (known.length) out["task:" + task] = { title: `task ${task}: choice accuracy`, names: known, chance };
      for (const n of known) there.delete(n);
    }
    out.heads = { title: "the chosen and pinned heads", names: [] };
    for (const n of there) if (!LOSS.includes(n) && !C.data.isCalibration(n)) out[n] = { title: C.data.words(n).title, names: [n] };
    return out;
  };

  const SHORT = { train_loss: "training", validation_loss: "validation", copying_accuracy_token: "per token", copying_accuracy_exact: "whole suffix", copying_accuracy_token_averaged: "mean of weights", copying_loss_first: "first occurrence", copying_loss_second: "second occurrence" };
  const lineOf = (run, n) => ({ name: SHORT[n] || C.data.words(n).title, ...run.curves[n], unit: C.data.words(n).unit });
  /** A line of a group, named so that the group's title need not be said again. */
  function lineIn(run, group, n) {
    const line = lineOf(run, n);
    if (n === "copying_accuracy_token" && group.names.length > 1 && group.names[1].startsWith("task:")) return { ...line, name: "copying" };
    if (!n.startsWith("task:")) return line;
    const [task, ...variant] = n.slice(5).split(" ");
    return { ...line, name: group.chance ? `${variant.join(" ")} (chance ${C.number(group.chance[n], 2)})` : `${task} ${variant.join(" ")}` };
  }

  function second(s, run) {
    const group = C.curveGroups(run)[s.curve];
    if (s.curve !== "heads") return group.names.map((n) => lineIn(run, group, n));
    const scores = C.data.scores(s.run, s.measure);
    if (!scores) return [];
    return [...new Set([C.head(), ...C.pins()])].slice(0, 6).map((h) => {
      const values = scores.steps.map((_, i) => scores.values[i * scores.nHeads + h]).map((v) => (Number.isNaN(v) ? null : v));
      return { name: C.data.headName(run, h), steps: scores.steps, values, se: null, unit: C.data.words(s.measure).unit };
    });
  }

  function panels(s, run) {
    const lines = second(s, run);
    const title = s.curve === "heads" ? C.data.words(s.measure).title : C.curveGroups(run)[s.curve].title;
    const unit = lines.length && lines[0].unit;
    const share = (s.curve === "copying" || s.curve === "heads" || s.curve.startsWith("task")) && lines.every((l) => l.values.every((v) => v === null || (v >= 0 && v <= 1)));
    const loss = LOSS.filter((n) => run.curves[n]).map((n) => ({ ...lineOf(run, n), unit: "nats" }));
    return [
      ...(loss.length ? [{ title: "Loss, nats per token", lines: loss }] : []),
      { title: title[0].toUpperCase() + title.slice(1) + (unit ? ", " + unit : ""), lines, ...(share ? { low: -0.03, high: 1.03 } : {}) },
    ];
  }

  /** How tall the parts of the first view may be, so that curves and maps fit the window without a scroll. */
  C.viewHeights = function (count) {
    const above = C.byId("story").getBoundingClientRect().bottom + window.scrollY + 6;
    const room = Math.max(window.innerHeight - above, 330);
    const maps = C.state().beside === "none" ? 1 : 2;
    const panel = Math.round(Math.max(44, Math.min(100, room * 0.12)));
    const header = C.isNarrow() ? 34 : 19;
    const left = room - 2 * (panel + header + 4) - 38 - maps * 34;
    const [least, fine] = count > 64 ? [1, 4] : [4, 1]; // many heads get quarters of a pixel
    return { panel, row: Math.max(least, Math.min(22, Math.floor((fine * left) / maps / Math.max(count, 1)) / fine)) };
  };

  /** The curves as a picture of their own: the run's name over them, the axis under them. */
  C.curvesPicture = function () {
    const [s, run] = [C.state(), C.run()];
    const found = panels(s, run);
    found[0] = { ...found[0], title: `${run.name}: ${found[0].title}` };
    return C.lineChart({ panels: found, axis: shown.axis, frame: shown.frame, height: 120, band: C.band(run, shown.axis), name: "curves" });
  };

  let shown = null; // the chart as drawn, with its axis, frame and panels
  C.curvesShown = () => shown && { low: shown.axis.low, high: shown.axis.high, panels: shown.panels.map(({ title, lines }) => ({ title, lines: lines.map(({ name, steps, values }) => ({ name, steps, values })) })) };

  /** Draws the curves when anything but the step changed. */
  C.drawCurves = function () {
    const [s, run] = [C.state(), C.run()];
    const holder = C.byId("curves-holder");
    const axis = C.currentAxis();
    const frame = C.frame(holder.clientWidth);
    const height = C.viewHeights(C.orderedHeads().length).panel;
    const ofHeads = s.curve === "heads" && [s.head, s.pins, s.measure, !!C.data.scores(s.run, s.measure)];
    const key = JSON.stringify([s.run, s.axis, s.from, s.to, s.curve, frame.width, height, C.isDark(), ofHeads, C.generation]);
    C.once(C.byId("curves"), key, () => {
      const settled = run.settled && run.settled.step !== null ? [{ at: axis.position(run.settled.step), panel: 0 }] : [];
      const drawn = panels(s, run);
      const marks = drawn.length > 1 ? settled : [];
      const name = `Loss and ${C.curveGroups(run)[s.curve].title} over training`;
      shown = { ...C.lineChart({ panels: drawn, axis, frame, height, band: C.band(run, axis), marks, labels: false, name }), axis, frame, panels: drawn };
      C.fill(C.byId("curves"), shown.svg);
      C.byId("curves").setAttribute("aria-label", name + ". The Report tab has the numbers.");
      C.fill(C.byId("curves-caption"), caption(run));
    });
    const x = axis.x(axis.position(s.step), frame.left, frame.plot);
    const line = C.byId("curves-cursor");
    line.hidden = x < frame.left - 1 || x > frame.left + frame.plot + 1;
    line.style.transform = `translateX(${x}px)`;
    line.style.top = shown.tops[0] + "px";
    line.style.height = shown.end - shown.tops[0] + "px";
  };

  function caption(run) {
    const words = [];
    if (run.settled && run.settled.step !== null) words.push(`Dotted line: the loss had plateaued at step ${C.number(Math.round(run.settled.step))}${run.settled.rule ? ` (${C.ruleWords(run.settled.rule)})` : ""}.`);
    words.push("Shading of a curve: 95 % interval over prompts. Drag sideways to zoom, double-click for all steps.");
    return words.join(" ");
  }

  /** Every curve's value at the checkpoint nearest to a step, as lines of text; where a curve has other steps, at its nearest. */
  C.valuesAt = function (step) {
    const [s, run] = [C.state(), C.run()];
    const words = panels(s, run).flatMap((panel) =>
      panel.lines.map((line) => {
        const near = C.data.nearest(line.steps.filter((_, i) => line.values[i] !== null), step);
        return near === null ? null : `${panel.title.split(",")[0]}, ${line.name}: ${C.precise(line.values[line.steps.indexOf(near)])}${near === step ? "" : ` (step ${C.number(near)})`}`;
      })
    );
    for (const measure of [s.measure, s.beside]) {
      const value = measure === "none" ? undefined : C.data.value(s.run, measure, C.head(), step);
      if (value !== undefined && value !== null) words.push(`${C.data.headName(run, C.head())} ${C.data.words(measure).title}: ${C.number(value)}`);
    }
    return [C.stepWords(run, step), ...words.filter((w) => w !== null)];
  };
  C.stepWords = function (run, step) {
    const tokens = C.data.tokensAt(run, step);
    const last = run.steps[run.steps.length - 1];
    const planned = C.data.source.live && run.planned && last < run.planned ? ` of ${C.number(run.planned)}` : "";
    return `step ${C.number(step)}${planned}${tokens === null || tokens === undefined ? "" : `, ${C.stepLabel(tokens)} tokens`}`;
  };

  C.setUpCurves = function () {
    const holder = C.byId("curves-holder");
    const shade = C.el("div", { class: "dragged", "aria-hidden": "true", hidden: true });
    holder.append(shade);
    const stepAt = (x) => C.data.nearest(C.run().steps, shown.axis.step(shown.axis.at(x, shown.frame.left, shown.frame.plot)));
    C.onAxis(holder, () => shown && shown.frame, {
      hover(x, event) {
        if (!shown || x < shown.frame.left || x > shown.frame.left + shown.frame.plot) return C.tip(null);
        C.hovered = { step: stepAt(x) };
        return C.tip(C.valuesAt(stepAt(x)), event.clientX, event.clientY);
      },
      leave() {
        shade.hidden = true;
        C.hovered = null;
        C.tip(null);
      },
      click: (x) => C.go({ step: stepAt(x) }),
      drag(low, high, done, moved) {
        shade.hidden = done;
        Object.assign(shade.style, { left: low + "px", width: high - low + "px", top: shown.tops[0] + "px", height: shown.end - shown.tops[0] + "px" });
        const at = (x) => shown.axis.at(x, shown.frame.left, shown.frame.plot);
        if (done && moved) C.zoom(shown.axis, at(low), at(high));
      },
    });
  };

  /** A rule without the name of what it is a rule for. */
  C.ruleWords = (rule) => rule.replace(/^(loss plateau|phase change): /, "");

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
