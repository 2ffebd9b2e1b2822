"use strict";
// In which order heads form: a dot a head at its formation step, its 95 % interval as a line, measure under measure.
(function (C) {
  const STAGES = [["previous_token", "○", "#0072b2"], ["prefix_matching_sum", "◆", "#d55e00"], ["induction_score", "■", "#009e73"], ["induction_attention", "▲", "#cc79a7"]];
  const ROW = 18; // pixels a line
  const MAX_HEADS = 12; // heads drawn a measure

  const whole = (value) => (value === null || value === undefined ? null : Math.round(value));

  function stages(run) {
    const known = run.formation || {};
    const out = STAGES.filter(([m]) => known[m]);
    for (const m of Object.keys(known)) if (!out.some(([x]) => x === m) && out.length < 6) out.push([m, "●", "#5b636d"]);
    return out;
  }

  C.drawOrder = function (place, table) {
    const [s, run] = [C.state(), C.run()];
    const axis = C.currentAxis();
    const width = place.clientWidth;
    const lines = [];
    const rows = [];
    const tidy = [];
    for (const [measure, sign, color] of stages(run)) {
      const formed = run.formation[measure].filter((f) => f.step !== null).sort((x, y) => x.step - y.step || x.head - y.head);
      const more = formed.length - MAX_HEADS;
      lines.push({ title: `${sign} ${C.data.words(measure).title}${formed.length ? "" : ": none formed"}${more > 0 ? ` (the first ${MAX_HEADS}; ${more} more in the table)` : ""}` });
      for (const f of formed.slice(0, MAX_HEADS)) lines.push({ ...f, name: C.data.headName(run, f.head), sign, color });
      for (const f of formed) tidy.push([run.name, measure, ...C.layerAndHead(run, f.head), f.step, C.meant(f.low), C.meant(f.high), f.state]);
      for (const f of formed) rows.push([C.data.words(measure).title, C.data.headName(run, f.head), f.step, whole(f.low), whole(f.high), C.stateWords(f.state)]);
    }
    for (const [title, found] of [["Copying", run.copying], ["Loss plateaued", run.settled]]) {
      if (!found || found.step === null || found.step === undefined) continue;
      lines.push({ title, step: found.step, low: found.low, high: found.high, sign: "★", color: C.color("ink") });
      tidy.push([run.name, found.measure || title.toLowerCase().replace(/ /g, "_"), null, null, whole(found.step), C.meant(found.low), C.meant(found.high), found.rule || ""]);
      rows.push([title, "the model", whole(found.step), whole(found.low), whole(found.high), found.measure ? `half-way up ${C.data.words(found.measure).title}` : C.ruleWords(found.rule || "")]);
    }
    C.once(place, JSON.stringify([s.run, s.axis, s.from, s.to, width, C.isDark(), C.generation, s.head]), () => {
      if (!rows.length) return C.fill(place, C.el("p", { class: "note" }, "Nothing formed in this run, or it has too few checkpoints to tell when."));
      const frame = C.frame(width);
      const tall = lines.length * ROW + 40;
      const soft = C.color("soft");
      const picture = C.svg("svg", { width, height: tall, viewBox: `0 0 ${width} ${tall}`, role: "img", "aria-label": "Formation steps in order; the table below has the same" });
      const x = (step) => Math.max(frame.left, Math.min(frame.left + frame.plot, axis.x(axis.position(step), frame.left, frame.plot)));
      for (const [at, text] of axis.ticks(frame.plot < 420 ? 6 : 12)) {
        const tick = axis.x(at, frame.left, frame.plot);
        picture.append(C.svg("line", { x1: tick, x2: tick, y1: 0, y2: tall - 36, stroke: C.color("line") }), C.svg("text", { x: tick, y: tall - 22, "text-anchor": "middle", fill: soft, "font-size": 11 }, text));
      }
      picture.append(C.svg("text", { x: frame.left + frame.plot / 2, y: tall - 6, "text-anchor": "middle", fill: soft, "font-size": 11 }, axis.title));
      const band = C.band(run, axis);
      if (band) picture.append(C.svg("rect", { x: axis.x(band[0], frame.left, frame.plot), width: Math.max(2, axis.x(band[1], frame.left, frame.plot) - axis.x(band[0], frame.left, frame.plot)), y: 0, height: tall - 36, fill: "rgba(213,94,0,0.07)", stroke: C.color("found"), "stroke-dasharray": "5 4" }));
      lines.forEach((line, i) => {
        const y = (i + 0.5) * ROW;
        if (line.title) {
          picture.append(C.svg("text", { x: 2, y: y + 4, fill: C.color("ink"), "font-weight": 600, "font-size": 12 }, line.title));
          if (line.step === undefined) return;
        }
        const chosen = line.head !== undefined && line.head === C.head();
        if (line.low !== null && line.low !== undefined) picture.append(C.svg("line", { x1: x(line.low), x2: x(line.high), y1: y, y2: y, stroke: line.color, "stroke-width": 2, opacity: 0.6 }));
        picture.append(C.svg("text", { x: x(line.step), y: y + 4, fill: line.color, "text-anchor": "middle", "font-size": 13 }, line.sign));
        if (line.name) picture.append(C.svg("text", { x: frame.left - 6, y: y + 4, fill: C.color(chosen ? "ink" : "soft"), "font-weight": chosen ? 700 : 400, "text-anchor": "end", "font-size": 11 }, line.name));
        const end = x(Math.max(line.high || 0, line.step)) + 8;
        const inside = end < width - 40;
        picture.append(C.svg("text", { x: inside ? end : x(Math.min(line.low ?? line.step, line.step)) - 8, y: y + 4, "text-anchor": inside ? "start" : "end", fill: soft, "font-size": 11 }, C.stepWord(line.step)));
      });
      return C.fill(place, picture);
    });
    C.table(table, { title: "Formation steps", name: "formation", columns: ["measure", "head", "step", "95 % from", "to", "status or rule"], rows, tidy: () => ({ columns: ["run", "measure", "layer", "head", "step", "low", "high", "status_or_rule"], rows: tidy }) });
  };
})(Copyscope);
