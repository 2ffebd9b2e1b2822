"use strict";
// Tables of heads and of layers at the step cursor, and the chosen head's facts beside the map.
(function (C) {
  /** One row a head, in the chosen order: [rows, heads, columns]. */
  C.headRows = function () {
    const [s, run] = [C.state(), C.run()];
    const heads = C.orderedHeads();
    const score = C.scoreMeasure(run);
    const effect = C.effectKey(run);
    const scores = C.data.scores(s.run, s.measure);
    const last = scores ? scores.steps[scores.steps.length - 1] : null;
    const effects = effect ? C.data.scores(s.run, effect) : null;
    const effectStep = effects ? C.data.nearest(effects.steps, s.step) : null;
    const has = (suffix) => run.measures.includes(score + suffix);
    const columns = ["head", `at step ${C.number(s.step)}`, "final"];
    if (has("_null")) columns.push("null");
    if (has("_selectivity")) columns.push("× uniform");
    if ((run.above_null || {})[score]) columns.push("above chance");
    if ((run.formation || {})[score]) columns.push("formed at", "95 % from", "to", "status");
    if (effect) columns.push(`ablated${effectStep === null ? "" : ` (step ${C.number(effectStep)})`}`);
    const rows = heads.map((h) => {
      const row = [C.data.headName(run, h), C.data.value(s.run, s.measure, h, s.step) ?? null, last === null ? null : C.data.value(s.run, s.measure, h, last) ?? null];
      if (has("_null")) row.push(C.data.value(s.run, score + "_null", h, s.step) ?? null);
      if (has("_selectivity")) row.push(C.data.value(s.run, score + "_selectivity", h, s.step) ?? null);
      if ((run.above_null || {})[score]) row.push(C.data.isAbove(run, score, h) ? "yes" : "no");
      if ((run.formation || {})[score]) {
        const found = C.data.formation(run, score, h) || {};
        const whole = (v) => (v === null || v === undefined ? null : Math.round(v));
        row.push(found.step ?? null, whole(found.low), whole(found.high), C.stateWords(found.state) || "");
      }
      if (effect) row.push(effectStep === null ? null : C.data.value(s.run, effect, h, effectStep) ?? null);
      return row;
    });
    return { columns, rows, heads, effect, tidy: () => tidyHeads(heads, last, effectStep) };
  };

  /** The same heads for a file: a column a number, names as in the run's tables. */
  function tidyHeads(heads, last, effectStep) {
    const [s, run] = [C.state(), C.run()];
    const [score, effect] = [C.scoreMeasure(run), C.effectKey(run)];
    const known = (run.formation || {})[score];
    const extra = ["null", "selectivity"].filter((kind) => run.measures.includes(`${score}_${kind}`));
    const above = (run.above_null || {})[score];
    const columns = [
      "run", "step", "layer", "head", "measure", "value", "standard_error", "final_step", "final_value", "final_standard_error", ...extra.map((kind) => `${score}_${kind}`), ...(above ? ["above_chance"] : []),
      ...(known ? ["formation_step", "formation_low", "formation_high", "status"] : []), ...(effect ? ["effect", "effect_step", "effect_value", "effect_standard_error"] : []),
    ];
    const rows = heads.map((h) => {
      const cells = (measure, step) => (step === null ? [null, null] : C.data.cells(s.run, measure, h, step));
      const row = [run.name, s.step, ...C.layerAndHead(run, h), s.measure, ...cells(s.measure, s.step), last, ...cells(s.measure, last)];
      row.push(...extra.map((kind) => C.meant(C.data.value(s.run, `${score}_${kind}`, h, s.step))));
      if (above) row.push(above.includes(h) ? 1 : 0);
      const found = C.data.formation(run, score, h) || {};
      if (known) row.push(found.step ?? null, C.meant(found.low), C.meant(found.high), found.state || "");
      if (effect) row.push(effect, effectStep, ...cells(effect, effectStep));
      return row;
    });
    return { columns, rows };
  }

  C.drawHeads = function () {
    const [s, run] = [C.state(), C.run()];
    const words = C.data.words(s.measure);
    const { columns, rows, heads, effect, tidy } = C.headRows();
    C.byId("heads-title").textContent = words.title;
    const shown = heads.length === run.n_layers * run.n_heads ? `All ${heads.length} heads` : `${heads.length} of ${run.n_layers * run.n_heads} heads`;
    C.byId("heads-words").textContent = `${shown}. ${effect ? `“Ablated”: ${C.data.words(effect).title}.` : "No head was ablated in this run."} Click a head's name to select it, a column to sort.`;
    C.table(C.byId("heads-table"), {
      title: `Heads at step ${C.number(s.step)}`, name: "heads", columns, rows, tidy, digits: { "× uniform": 1 },
      pressed: heads.map((h, i) => (h === C.head() || C.pins().includes(h) ? i : -1)).filter((i) => i >= 0),
      links: (i) => C.go({ head: C.headText(run, heads[i]) }),
    });
    layers(s, run);
  };

  function layers(s, run) {
    const score = C.scoreMeasure(run);
    const rows = [...Array(run.n_layers).keys()].map((layer) => {
      const heads = [...Array(run.n_heads).keys()].map((h) => layer * run.n_heads + h);
      const values = heads.map((h) => [h, C.data.value(s.run, s.measure, h, s.step)]).filter(([, v]) => v !== null && v !== undefined);
      const best = values.reduce((a, b) => (a && Math.abs(a[1]) >= Math.abs(b[1]) ? a : b), null);
      const formed = heads.map((h) => C.data.formation(run, score, h)).filter((f) => f && f.step !== null);
      return [
        `L${layer}`, best ? best[1] : null, best ? C.data.headName(run, best[0]) : "", values.length ? values.reduce((sum, [, v]) => sum + v, 0) / values.length : null,
        formed.length, formed.length ? Math.min(...formed.map((f) => f.step)) : null,
      ];
    });
    C.table(C.byId("layers-table"), { title: `Layers at step ${C.number(s.step)}`, name: "layers", columns: ["layer", "highest", "head", "mean", "heads formed", "first formed at"], rows,
      tidy: () => ({
        columns: ["run", "step", "layer", "measure", "highest", "highest_head", "mean", "heads_formed", "first_formation_step"],
        rows: rows.map(([, highest, name, mean, count, first], layer) => [run.name, s.step, layer, s.measure, C.meant(highest), name ? Number(name.split("H")[1]) : null, C.meant(mean), count, first]),
      }),
    });
  }

  C.drawSide = function () {
    const [s, run] = [C.state(), C.run()];
    const head = C.head();
    const name = C.data.headName(run, head);
    C.byId("side-title").textContent = `${name} at step ${C.number(s.step)}`;
    const facts = C.cellFacts(s.measure, head, s.step);
    const score = C.scoreMeasure(run);
    if (score !== s.measure) facts.push(...C.cellFacts(score, head, s.step));
    const effect = C.effectKey(run);
    const effects = effect && effect !== s.measure ? C.data.scores(s.run, effect) : null;
    if (effects) {
      const at = C.data.nearest(effects.steps, s.step);
      const entry = run.ablations[effect];
      const [others, matched] = [entry.control, entry.matched].map((block) => (block ? C.data.block(block, effects, head, at) : null));
      const beside = [[matched, "heads of like attention entropy"], [others, "others in the layer"]].filter(([value]) => value !== null);
      const what = C.data.words(effect).title.replace(/: change.*/, "").toLowerCase();
      const besideWords = beside.map(([value, whose]) => `${whose}: ${C.signed(value, 2)} on average`).join("; ");
      const method = effect.split(":")[0];
      facts.push([`${METHODS[method] || method.replace(/_/g, " ") + "-ablating it"}${at === s.step ? "" : ` (step ${C.number(at)})`}`, `${C.signed(C.data.value(s.run, effect, head, at) ?? null, 2)} ${what}${besideWords ? ` (${besideWords})` : ""}`]);
    }
    facts.unshift(...roleFacts(run, head));
    const place = C.byId("side-facts");
    C.once(place, JSON.stringify(facts), () => C.fill(place, facts.map(([key, value]) => C.el("div", {}, C.el("dt", {}, key), C.el("dd", {}, value)))));
    sparklines(s, run, head);
  };

  const METHODS = { zero: "zero-ablating it", mean: "mean-ablating it", resample: "resample-ablating it", frozen_patterns: "zero-ablating it, attention held" };
  const MOST_ROLES = 4;
  /** What the head is: its strongest kinds, each with when it became one and how strong it is. */
  function roleFacts(run, head) {
    const found = C.rolesOf(run, head);
    const said = found.slice(0, MOST_ROLES).map((one) => [one.role, `${C.formationWords(one)}; ${C.number(one.final, 2)} at the end${one.peak > one.final ? `, ${C.number(one.peak, 2)} at its best` : ""}`]);
    if (run.roles && run.roles.length && !found.length) said.push(["what it is", "none of the kinds looked for"]);
    if (found.length > MOST_ROLES) said.push(["and", found.slice(MOST_ROLES).map((one) => one.role).join(", ")]);
    return said;
  }

  const [WIDE, TALL] = [84, 18]; // of a sparkline, in pixels
  /** Every measure of the head over all checkpoints, each a small line with its value here; a click looks at that measure. */
  function sparklines(s, run, head) {
    if (!C.byId("side-more").open) return; // a dozen tables that nobody looks at yet
    const place = C.byId("side-measures");
    const axis = C.axis(run, s.axis);
    const lines = C.choices(run).scores.filter((m) => !m.endsWith("_value_weighted")).map((measure) => {
      const scores = C.data.scores(s.run, measure);
      if (!scores) return null;
      const range = C.data.range(s.run, measure);
      const y = (v) => TALL - 1 - ((v - range.low) / (range.high - range.low)) * (TALL - 2);
      let [path, down] = ["", false];
      scores.steps.forEach((step, i) => {
        const v = scores.values[i * scores.nHeads + head];
        if (Number.isNaN(v)) return (down = false);
        path += `${down ? "L" : "M"}${axis.x(axis.position(step), 0, WIDE).toFixed(1)},${y(v).toFixed(1)}`;
        return (down = true);
      });
      return { measure, path, value: C.data.value(s.run, measure, head, s.step) ?? null };
    });
    const at = axis.x(axis.position(s.step), 0, WIDE).toFixed(1);
    C.once(place, JSON.stringify([lines, at, s.measure, C.isDark()]), () =>
      C.fill(
        place,
        lines.filter((line) => line !== null).map((line) =>
          C.el("button", { type: "button", class: "spark", "data-measure": line.measure, "aria-pressed": String(line.measure === s.measure), onclick: () => C.go({ measure: line.measure }) },
            C.el("span", {}, C.data.words(line.measure).title),
            C.svg("svg", { width: WIDE, height: TALL, "aria-hidden": "true" }, C.svg("line", { x1: at, x2: at, y1: 0, y2: TALL, stroke: C.color("line") }), C.svg("path", { d: line.path, fill: "none", stroke: C.color("accent"), "stroke-width": 1.4 })),
            C.el("span", { class: "value" }, C.number(line.value, 2)))
        )
      )
    );
  }
})(Copyscope);
