"use strict";
// The circuit as a small graph: a circle a head, a line a pair of heads that is strong enough; thicker is stronger.
(function (C) {
  const INDUCTION = ["prefix_matching_sum", "induction_score", "induction_attention"];

  const BY = [["path_score", "path score"], ["k_composition", "K-composition"], ["effect", "effect of cutting the path"]];
  /** What pairs can be ranked by in this run: [[key, words]]; the path score, which tells the circuit best, first. */
  C.pairMeasures = (run) => BY.filter(([key]) => (run.pairs || []).some((p) => p[key] !== null && p[key] !== undefined));
  const strength = (pair, by) => Math.abs(pair[by] ?? 0);

  C.drawCircuit = function (place, table) {
    const [s, run] = [C.state(), C.run()];
    const pairs = run.pairs || [];
    const steps = [...new Set(pairs.map((p) => p.step))].sort((a, b) => a - b);
    const step = C.data.nearest(steps, s.step);
    C.byId("circuit-title").textContent = step === null ? "Pairs of heads" : `Pairs of heads at step ${C.number(step)}${step === s.step ? "" : ` (the nearest measured to ${C.number(s.step)})`}`;
    const kinds = C.pairMeasures(run);
    const by = kinds.some(([key]) => key === s.pairs) ? s.pairs : (kinds[0] || ["k_composition"])[0];
    const known = pairs.filter((p) => p.step === step).sort((x, y) => strength(y, by) - strength(x, by));
    const top = known.length ? strength(known[0], by) : 0;
    const least = (top * s.cut) / 100;
    const here = known.filter((p) => strength(p, by) >= least && strength(p, by) > 0);
    C.options(C.byId("pairs"), [["", kinds]], by);
    C.byId("cut").value = String(s.cut);
    C.byId("cut-words").textContent = known.length ? `${C.number(least)}: ${here.length} of ${known.length} pairs` : "";
    for (const id of ["pairs", "cut-control"]) C.byId(id).closest("label").hidden = !known.length;
    C.numbersOf.pairs = here.map((p) => [p.earlier, p.later, p[by]]);
    const second = INDUCTION.find((m) => run.measures.includes(m));
    const first = run.measures.includes("previous_token") ? "previous_token" : null;
    const heads = [...Array(run.n_layers * run.n_heads).keys()];
    const value = (m, h) => (m ? C.data.value(s.run, m, h, s.step) ?? null : null);
    const scores = heads.map((h) => [value(first, h), value(second, h)]);
    const width = place.clientWidth;
    C.once(place, JSON.stringify([here, by, scores, s.head, width, C.isDark()]), () => {
      C.fill(place, picture(run, here, by, scores, [first, second], width), words(first, second, here, by));
      const near = (event) => {
        const node = event && event.target.closest("[data-head]");
        place.classList.toggle("pairs-faint", Boolean(node));
        if (node) for (const path of place.querySelectorAll("path[data-pair]")) path.classList.toggle("near", path.dataset.pair.split(" ").includes(node.dataset.head));
      };
      place.onpointerover = near;
      place.onpointerleave = () => near(null);
      place.onclick = (event) => {
        const node = event.target.closest("[data-head]");
        if (node) C.go({ head: node.dataset.head });
      };
      place.onkeydown = (event) => {
        const node = event.target.closest("[data-head]");
        if (node && (event.key === "Enter" || event.key === " ")) {
          event.preventDefault();
          event.stopPropagation();
          C.go({ head: node.dataset.head });
          const again = place.querySelector(`[data-head="${node.dataset.head}"]`);
          if (again) again.focus();
        }
      };
    });
    table.hidden = !here.length;
    C.table(table, {
      title: "The strongest pairs", name: "pairs",
      columns: ["earlier head", "later head", ...kinds.map(([, name]) => name), ...[[first, "earlier"], [second, "later"]].map(([m, which]) => `${m ? C.data.words(m).title : "score"} (${which} head)`)],
      rows: here.map((p) => [C.data.headName(run, p.earlier), C.data.headName(run, p.later), ...kinds.map(([key]) => p[key] ?? null), scores[p.earlier][0], scores[p.later][1]]),
      links: (i) => C.go({ head: C.headText(run, here[i].later) }),
      tidy: () => ({
        columns: ["run", "step", "earlier_layer", "earlier_head", "later_layer", "later_head", ...kinds.map(([key]) => (key === "effect" ? "effect_on_copying_loss" : key)), ...(first ? [`earlier_${first}`] : []), ...(second ? [`later_${second}`] : [])],
        rows: here.map((p) => [run.name, step, ...C.layerAndHead(run, p.earlier), ...C.layerAndHead(run, p.later), ...kinds.map(([key]) => p[key] ?? null), ...(first ? [C.meant(scores[p.earlier][0])] : []), ...(second ? [C.meant(scores[p.later][1])] : [])]),
      }),
    });
  };

  function words(first, second, here, by) {
    const lines = here.length
      ? `Lines join an earlier head to a later head that reads it; thicker: more ${Object.fromEntries(BY)[by]}${here.some((p) => p.effect) ? "; orange: cutting the path changes copying" : ""}.`
      : "No pairs of heads were measured here, or none is as strong as that.";
    const halves = `${first ? "left half: " + C.data.words(first).title : ""}${first && second ? "; " : ""}${second ? "right half: " + C.data.words(second).title : ""}`;
    return C.el("figcaption", {}, `Circle colour, dark 0 to yellow 1: ${halves}. ${lines} Layer 0 on top.`);
  }

  function picture(run, pairs, by, scores, measures, width) {
    const radius = Math.max(6, Math.min(19, (width - 70) / run.n_heads / 2.6, 260 / run.n_layers));
    const rowTall = Math.max(radius * 3.2, 34);
    const tall = run.n_layers * rowTall + 10;
    const left = 42;
    const spread = Math.min((width - left - 10) / run.n_heads, radius * 6);
    const at = (head) => [left + (head % run.n_heads + 0.5) * spread, (Math.floor(head / run.n_heads) + 0.5) * rowTall + 5];
    const full = left + run.n_heads * spread + 10;
    const svg = C.svg("svg", { width: full, height: tall, viewBox: `0 0 ${full} ${tall}`, role: "group", "aria-label": "Graph of head pairs; the table below has the same" });
    const top = Math.max(...pairs.map((p) => strength(p, by)), 1e-9);
    const strongest = Math.max(...pairs.map((p) => Math.abs(p.effect || 0)), 0);
    const chosen = C.head();
    for (const pair of [...pairs].reverse()) {
      const [[x1, y1], [x2, y2]] = [at(pair.earlier), at(pair.later)];
      const mine = pair.earlier === chosen || pair.later === chosen;
      const works = strongest && Math.abs(pair.effect || 0) > 0.25 * strongest;
      const bend = (y1 + y2) / 2;
      svg.append(
        C.svg("path", { "data-pair": `${C.headText(run, pair.earlier)} ${C.headText(run, pair.later)}`, d: `M${x1},${y1 + radius} C${x1},${bend} ${x2},${bend} ${x2},${y2 - radius}`, fill: "none", stroke: works ? "#d55e00" : C.color(mine ? "ink" : "soft"), "stroke-width": 0.8 + 5 * strength(pair, by) / top, opacity: mine || works ? 0.95 : 0.35 },
          C.svg("title", {}, `${C.data.headName(run, pair.earlier)} to ${C.data.headName(run, pair.later)}: ${Object.fromEntries(BY)[by]} ${C.number(pair[by])}`))
      );
    }
    const used = new Set(pairs.flatMap((p) => [p.earlier, p.later]));
    for (let layer = 0; layer < run.n_layers; layer++) svg.append(C.svg("text", { x: 4, y: (layer + 0.5) * rowTall + 9, fill: C.color("soft"), "font-size": 12 }, `L${layer}`));
    for (const head of scores.keys()) {
      const [x, y] = at(head);
      const half = (sweep, v, m) => C.svg("path", { d: `M${x},${y - radius} A${radius},${radius} 0 0 ${sweep} ${x},${y + radius} Z`, fill: v === null ? C.color("missing") : C.css(v, m ? C.data.range(C.state().run, m) : { low: 0, high: 1 }, C.color("missing")) });
      const label = `${C.data.headName(run, head)}: ${measures.map((m, i) => (m ? `${C.data.words(m).title} ${C.number(scores[head][i])}` : "")).filter(Boolean).join(", ")}`;
      svg.append(
        C.svg("g", { "data-head": C.headText(run, head), tabindex: used.has(head) || head === chosen ? "0" : "-1", role: "button", "aria-label": label, "aria-pressed": String(head === chosen), class: "node" },
          C.svg("title", {}, label), C.svg("g", { opacity: !pairs.length || used.has(head) || head === chosen ? 1 : 0.45 }, half(0, scores[head][0], measures[0]), half(1, scores[head][1], measures[1])), // its name stays readable
          C.svg("circle", { cx: x, cy: y, r: radius, fill: "none", stroke: head === chosen ? "#d55e00" : C.color("soft"), "stroke-width": head === chosen ? 3.5 : 1 }),
          spread > radius * 2 + 26 ? C.svg("text", { x: x + radius + 4, y: y + 4, "font-size": 11, fill: C.color("soft") }, `H${head % run.n_heads}`) : null)
      );
    }
    return C.el("div", { class: "scroll" }, svg);
  }
})(Copyscope);
