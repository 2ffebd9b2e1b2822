"use strict";
// What the model predicts after each token: the right one's probability as a shade, the five most probable after the
// chosen token, its probability over checkpoints, and the same read from the stream after each layer.
(function (C) {
  let overTraining = null; // the run and prompt whose every checkpoint was asked for

  const without = () => (C.data.source.live && C.state().without ? C.data.headName(C.run(), C.head()) : "");
  const percent = (p) => (p >= 0.9995 ? "1" : p < 0.0005 ? "0.000" : p.toFixed(3));

  /** Predictions at the step looked at: {step, loss, p, top, layers}, or undefined. */
  C.predictionsNow = (step = C.state().step, removed = without()) => C.data.predictions(C.state().run, C.state().prompt, step, removed);

  C.setUpPredictions = function () {
    const list = C.byId("predicted-tokens");
    list.addEventListener("keydown", (event) => {
      if (C.queryKeys(event, "ArrowLeft", "ArrowRight")) list.children[C.state().query].focus();
    });
    list.addEventListener("pointerleave", () => C.hoverQuery(null));
    C.byId("without").addEventListener("change", (event) => C.go({ without: event.target.checked ? "1" : "" }));
    C.byId("predicted-all").addEventListener("click", () => {
      overTraining = C.state().run + "/" + C.state().prompt;
      C.redraw();
    });
  };

  C.drawPredictions = function () {
    const [s, run] = [C.state(), C.run()];
    const prompt = C.data.prompt(s.run, s.prompt);
    const there = Boolean(prompt && prompt.predictions && prompt.steps.length);
    C.byId("predictions-part").hidden = !there;
    if (!there) return;
    const head = C.data.headName(run, C.head());
    C.byId("without-control").hidden = !C.data.source.live;
    C.byId("without").checked = Boolean(s.without);
    C.byId("without-words").textContent = `without ${head}`;
    const now = C.predictionsNow();
    const problem = now ? null : C.data.predictionsProblem(s.run, s.prompt, s.step, without());
    C.byId("predictions-part").classList.toggle("waiting", !now && !problem);
    C.byId("predicted-words").textContent = problem || "";
    if (!now) return;
    const removed = without();
    C.byId("predictions-title").textContent = `What the model predicts next, at step ${C.number(now.step)}${removed ? `, without ${removed}` : ""}`;
    tokens(prompt, now);
    const query = C.query();
    const next = query + 1 < prompt.tokens.length ? prompt.tokens[query + 1] : null;
    const named = (text) => `“${C.tokenText(text)}”`;
    const whole = removed ? C.predictionsNow(s.step, "") : null;
    const compared = whole && next !== null ? ` (whole model: ${percent(whole.p[query])})` : "";
    C.byId("predicted-words").textContent = next === null
      ? `After ${named(prompt.tokens[query])} (token ${query}) the prompt ends.`
      : `After ${named(prompt.tokens[query])} (token ${query}) comes ${named(next)}: probability ${percent(now.p[query])}${compared}, loss ${C.number(now.loss[query], 2)} nats.`;
    C.table(C.byId("predicted-table"), {
      title: "The most probable next tokens", name: "predictions", columns: ["token", "probability", ""],
      rows: now.top[query].map(([text, p]) => [C.tokenText(text), p, text === next ? "the right one" : ""]),
      tidy: () => ({
        columns: ["run", "prompt", "step", "without", "position", "rank", "token", "probability", "right"],
        rows: now.top[query].map(([text, p], i) => [run.name, s.prompt, now.step, removed, query, i + 1, text, p, text === next ? 1 : 0]),
      }),
    });
    layers(now, query, next, [run.name, s.prompt, now.step, removed, query]);
    chart(s, run, prompt, query, next);
  };

  /** The prompt, each token shaded by the probability it had. */
  function tokens(prompt, now) {
    const list = C.byId("predicted-tokens");
    C.once(list, [C.state().run, C.state().prompt, prompt.tokens.length, C.generation].join("/"), () =>
      C.fill(
        list,
        prompt.tokens.map((token, i) => {
          const chip = C.el("button", { type: "button", class: "token" }, C.el("bdi", {}, C.tokenText(token)));
          chip.addEventListener("click", () => C.go({ query: Math.max(i - 1, 0) }));
          chip.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && i > 0 && C.hoverQuery(i - 1));
          return chip;
        })
      )
    );
    const query = C.query();
    prompt.tokens.forEach((token, i) => {
      const chip = list.children[i];
      const p = i ? now.p[i - 1] : null;
      const rgb = p === null ? null : C.attentionScale().rgb[Math.round(p * 255)];
      chip.style.background = rgb ? `rgb(${rgb.join(",")})` : "";
      chip.style.color = rgb ? C.inkOnRgb(rgb) : "";
      chip.classList.toggle("query", i === query);
      chip.classList.toggle("target", i === query + 1);
      chip.tabIndex = i === C.state().query ? 0 : -1;
      const words = `token ${i}, ${C.tokenText(token)}${p === null ? "" : `: probability ${percent(p)}, loss ${C.number(now.loss[i - 1], 2)}`}`;
      chip.setAttribute("aria-label", words);
      chip.title = words;
    });
  }

  function layers(now, query, next, whose) {
    const rows = now.layers.map((layer, i) => {
      const [text, p] = layer.top[query];
      return [i ? `after layer ${i - 1}` : "embedding", C.tokenText(text), p, ...(next === null ? [] : [layer.p[query]])];
    });
    C.table(C.byId("predicted-layers"), {
      title: "Read from the stream after each layer (logit lens)", name: "lens",
      columns: ["", "most probable", "probability", ...(next === null ? [] : [`of “${C.tokenText(next)}”`])], rows,
      tidy: () => ({
        columns: ["run", "prompt", "step", "without", "position", "after_layer", "token", "probability", "right_token", "right_probability"],
        rows: now.layers.map((layer, i) => [...whose, i ? i - 1 : "embedding", ...layer.top[query], next, next === null ? null : layer.p[query]]),
      }),
    });
  }

  /** The right token's probability at the query over the checkpoints that are here; a live page asks before it computes them all. */
  function chart(s, run, prompt, query, next) {
    const place = C.byId("predicted-steps");
    const all = !C.data.source.live || overTraining === s.run + "/" + s.prompt;
    C.byId("predicted-all").hidden = all || next === null;
    place.hidden = !all || next === null;
    if (place.hidden) return;
    const known = prompt.steps.map((step) => [step, C.predictionsNow(step)]).filter(([, found]) => found);
    const line = { name: `“${C.tokenText(next)}” after “${C.tokenText(prompt.tokens[query])}”`, steps: known.map(([step]) => step), values: known.map(([, found]) => found.p[query]), se: null };
    const second = { name: "all tokens, mean", steps: line.steps, values: known.map(([, found]) => found.p.reduce((a, b) => a + b, 0) / found.p.length), se: null };
    const axis = C.currentAxis();
    C.once(place, JSON.stringify([line, second.values, axis.low, axis.high, axis.kind, place.clientWidth, C.isDark()]), () =>
      C.fill(place, C.lineChart({ panels: [{ title: "Probability of the right token", lines: [line, second], low: -0.03, high: 1.03 }], axis, frame: C.frame(place.clientWidth), height: 90, band: C.band(run, axis), name: "Probability of the right token over training" }).svg)
    );
  }
})(Copyscope);
