"use strict";
// Many small attention pictures: the filmstrip of one head, and the grid of all heads.
(function (C) {
  const FRAMES = 9;

  /** Steps around the head's formation, even in their logarithms; without one, spread evenly over training. */
  function filmSteps(prompt, formed) {
    const steps = prompt.steps;
    if (steps.length <= FRAMES) return steps;
    if (formed === null) return [...new Set([...Array(FRAMES).keys()].map((i) => steps[Math.round((i * (steps.length - 1)) / (FRAMES - 1))]))];
    const near = new Set([0.25, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 4].map((factor) => C.data.nearest(steps, factor * formed)));
    // Where checkpoints are far apart several of these are one; the nearest others take their places.
    const far = (step) => Math.abs(Math.log2(step + 1) - Math.log2(formed + 1));
    for (const step of [...steps].sort((a, b) => far(a) - far(b))) if (near.size < FRAMES) near.add(step);
    return [...near].sort((a, b) => a - b);
  }

  C.drawFilm = function (place) {
    const [s, run] = [C.state(), C.run()];
    const prompt = C.data.prompt(s.run, s.prompt);
    const head = C.head();
    const found = C.data.formation(run, C.scoreMeasure(run), head);
    const formed = found && found.step !== null ? found.step : null;
    C.byId("film-title").textContent = `${C.data.headName(run, head)} ${formed === null ? "over training" : `around its formation at step ${C.number(Math.round(formed))}`}`;
    if (!prompt || !prompt.steps.length) return C.fill(place);
    const steps = filmSteps(prompt, formed);
    C.once(place, JSON.stringify([s.run, s.prompt, steps, C.generation]), () => {
      C.fill(
        place,
        steps.map((step) =>
          C.el("button", { type: "button", class: "frame", onclick: () => C.go({ step: C.data.nearest(C.run().steps, step) }) }, C.el("canvas", { class: "pixels", "aria-hidden": "true" }), C.el("span", {}))
        )
      );
    });
    const shown = C.data.nearest(prompt.steps, s.step);
    const mark = formed === null ? null : C.data.nearest(steps.filter((x) => x >= formed), formed);
    steps.forEach((step, i) => {
      const frame = place.children[i];
      const attention = C.data.attention(s.run, s.prompt, step);
      if (attention) C.once(frame.firstChild, [s.run, s.prompt, step, head, C.isDark(), C.generation].join("/"), () => C.paintAttention(frame.firstChild, attention, head));
      frame.classList.toggle("waiting", !attention);
      frame.setAttribute("aria-current", step === shown ? "step" : "false");
      frame.setAttribute("aria-label", `Step ${step}${step === mark ? ", formed" : ""}`);
      frame.lastChild.textContent = C.number(step) + (step === mark ? " ◆" : "");
    });
    return undefined;
  };

  /** The heads of the chosen one's layer, beside its attention: a click shows another. */
  C.drawLayer = function (place) {
    const [s, run, attention] = [C.state(), C.run(), C.attentionNow()];
    const layer = Math.floor(C.head() / run.n_heads);
    const heads = [...Array(run.n_heads).keys()].map((h) => layer * run.n_heads + h);
    C.byId("layer-title").textContent = `Heads of layer ${layer}`;
    C.once(place, [s.run, layer, C.generation].join("/"), () => {
      const frame = (head) => C.el("button", { type: "button", class: "frame", onclick: () => C.go({ head: C.headText(C.run(), head) }) }, C.el("canvas", { class: "pixels", "aria-hidden": "true" }), C.el("span", {}, C.data.headName(run, head)));
      C.fill(place, heads.map(frame));
    });
    place.classList.toggle("waiting", !attention);
    heads.forEach((head, i) => {
      const frame = place.children[i];
      if (attention && place.clientWidth) C.once(frame.firstChild, [s.run, s.prompt, attention.step, head, C.isDark(), C.generation].join("/"), () => C.paintAttention(frame.firstChild, attention, head));
      frame.setAttribute("aria-current", String(head === C.head()));
    });
  };

  C.makeGrid = function (place) {
    place.addEventListener("keydown", (event) => {
      const cells = [...place.children];
      const at = cells.indexOf(document.activeElement);
      if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
      const columns = Math.max(1, cells.filter((c) => c.offsetTop === cells[0].offsetTop).length);
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: cells.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const cell = cells[Math.max(0, Math.min(cells.length - 1, to))];
      cell.focus();
      C.go({ head: cell.dataset.head });
    });
  };

  C.drawGrid = function (place) {
    const [s, run] = [C.state(), C.run()];
    const attention = C.attentionNow();
    const heads = C.orderedHeads();
    const byLayer = s.sort === "layer" && s.filter === "all" && run.n_heads <= 12 && place.clientWidth / run.n_heads >= 56;
    C.once(place, JSON.stringify([s.run, heads, byLayer, C.generation]), () => {
      place.style.gridTemplateColumns = byLayer ? `repeat(${run.n_heads}, minmax(0, 1fr))` : "";
      place.style.maxWidth = byLayer ? run.n_heads * 150 + "px" : "";
      place.parentElement.classList.toggle("whole", !(byLayer && run.n_heads <= 4)); // few heads leave room beside them
      C.fill(
        place,
        heads.map((head) =>
          C.el("button", { type: "button", class: "cell", "data-head": C.headText(run, head), onclick: () => C.go({ head: C.headText(C.run(), head) }) }, C.el("canvas", { class: "pixels", "aria-hidden": "true" }), C.el("span", {}), C.el("span", { class: "value" }))
        )
      );
    });
    place.classList.toggle("waiting", !attention);
    if (!heads.length) return C.fill(place, C.el("p", {}, "No heads match the filter."));
    const [chosen, pins, score] = [C.head(), C.pins(), C.scoreMeasure(run)];
    const formed = new Map(((run.formation || {})[score] || []).filter((f) => f.step !== null).map((f) => [f.head, f.step]));
    heads.forEach((head, i) => {
      const cell = place.children[i];
      const [canvas, name, value] = cell.children;
      if (attention) C.once(canvas, [s.run, s.prompt, attention.step, head, C.isDark(), C.generation].join("/"), () => C.paintAttention(canvas, attention, head));
      const here = formed.has(head) && formed.get(head) <= s.step;
      const number = C.number(C.data.value(s.run, s.measure, head, s.step), 2);
      name.textContent = `${pins.includes(head) ? "● " : ""}${C.data.headName(run, head)}${here ? " ◆" : ""}`;
      value.textContent = number;
      cell.setAttribute("aria-label", `${C.data.headName(run, head)}, ${number}${here ? ", formed" : ""}${pins.includes(head) ? ", pinned" : ""}`);
      cell.setAttribute("aria-pressed", String(head === chosen));
      cell.tabIndex = head === chosen || (i === 0 && !heads.includes(chosen)) ? 0 : -1;
    });
    return undefined;
  };

  let shown = null; // what CircuitsVis shows: {wholeLayer, key}
  let later = null;
  const visKey = (attention) => [C.state().run, C.state().prompt, attention.step, C.head(), C.generation].join("/");

  /** Draws CircuitsVis again, once the reader rests, if it shows another head or step than the page does. */
  C.followCircuitsVis = function () {
    const attention = shown && C.attentionNow();
    if (!attention || shown.key === visKey(attention)) return;
    clearTimeout(later);
    later = setTimeout(() => C.working(C.showCircuitsVis(shown.wholeLayer)), 400);
  };

  /** CircuitsVis with one head or one layer of heads, in a place of its own; loaded when first asked for. */
  C.showCircuitsVis = async function (wholeLayer) {
    const run = C.run();
    const words = C.byId("vis-words");
    const attention = C.attentionNow();
    if (!attention) return;
    shown = { wholeLayer, key: visKey(attention) };
    if (attention.nTokens > 48) {
      C.fill(C.byId("vis"));
      words.textContent = `This prompt has ${attention.nTokens} tokens; CircuitsVis is too slow beyond 48. The matrix above has no such limit.`;
      return;
    }
    words.textContent = "Loading …";
    await C.library("circuitsvis");
    const head = C.head();
    const first = Math.floor(head / run.n_heads) * run.n_heads;
    // It opens with the first head it is given, so that is the chosen one.
    const heads = wholeLayer ? [head, ...[...Array(run.n_heads).keys()].map((h) => first + h).filter((h) => h !== head)] : [head];
    const n = attention.nTokens;
    const square = (h) => [...Array(n).keys()].map((q) => [...C.data.row(attention, h, q), ...Array(n - q - 1).fill(0)]);
    const place = C.byId("vis");
    const holder = C.el("div", { id: "vis-holder" });
    C.fill(place, holder);
    // It strips white space from tokens; signs that can be seen stay, and keep equal tokens apart from each other.
    const tokens = attention.prompt.tokens.map((token) => C.shortText(C.tokenText(token), 16));
    if (wholeLayer) CircuitsVis.render(holder.id, CircuitsVis.AttentionHeads, { attention: heads.map(square), tokens, attentionHeadNames: heads.map((h) => C.data.headName(run, h)) });
    else CircuitsVis.render(holder.id, CircuitsVis.AttentionPattern, { attention: square(head), tokens, showAxisLabels: true, zoomed: true });
    words.textContent = `${wholeLayer ? `Layer ${first / run.n_heads}` : C.data.headName(run, head)} at step ${C.number(attention.step)}, drawn by CircuitsVis.`;
  };
})(Copyscope);
