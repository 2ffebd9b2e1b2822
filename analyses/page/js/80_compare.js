"use strict";
// Two checkpoints, or the same place in two runs: A, B and B − A, of scores and of attention; and curves of all runs.
(function (C) {
  const stepsOf = (run) => run.steps.map((step) => [step, C.number(step)]);

  /** Puts B where A is in its own run, by what the runs are aligned by: step, tokens, their fork, or their own formation of copying. */
  C.likeA = function () {
    const s = C.state();
    const [runA, runB] = [C.data.index.runs[s.run], C.data.index.runs[s.runb]];
    const tokens = C.data.tokensAt(runA, s.a);
    if (s.align === "tokens" && tokens !== null && C.hasTokens(runB)) {
      const far = (i) => (runB.tokens[i] === null ? Infinity : Math.abs(runB.tokens[i] - tokens));
      return C.go({ b: runB.steps[[...runB.steps.keys()].sort((x, y) => far(x) - far(y))[0]] });
    }
    if (s.align === "fork") return C.go({ b: C.data.nearest(runB.steps, C.sinceFork(s.run, s.runb, s.a)) });
    const [formA, formB] = [runA, runB].map((run) => (run.copying && run.copying.step) || null);
    const target = s.align === "formation" && formA && formB ? (s.a / formA) * formB : s.a;
    return C.go({ b: C.data.nearest(runB.steps, target) });
  };

  C.drawCompare = function () {
    const s = C.state();
    const { runs } = C.data.index;
    const [runA, runB] = [runs[s.run], runs[s.runb]];
    const other = s.runb !== s.run;
    const stepB = s.b;
    C.options(C.byId("a"), [["", stepsOf(runA)]], String(s.a));
    C.options(C.byId("b"), [["", stepsOf(runB)]], String(stepB));
    C.byId("b-like-a").hidden = !other;
    C.byId("runb-control").hidden = runs.length < 2;
    C.options(C.byId("runb"), [["", runs.map((r, i) => [i, r.name])]], String(s.runb));
    const same = runA.n_layers === runB.n_layers && runA.n_heads === runB.n_heads;
    const names = [`A: ${other ? runA.name + ", " : ""}step ${C.number(s.a)}`, `B: ${other ? runB.name + ", " : ""}step ${C.number(stepB)}`, "B − A"];
    C.byId("headb-control").hidden = same;
    const headsB = [...Array(runB.n_layers * runB.n_heads).keys()];
    if (!same) C.options(C.byId("headb"), [["", headsB.map((h) => [C.headText(runB, h), C.data.headName(runB, h)])]], s.headb);
    const shared = C.sharedWords(s.run, s.runb, s.a, stepB);
    C.byId("compare-shared").hidden = !shared;
    C.byId("compare-shared").textContent = shared;
    scores(s, runA, stepB, names, same);
    attention(s, runA, runB, stepB, names, same, other);
    C.drawRuns(C.byId("view-compare"));
  };

  /** The score of every head at A and B as layer × head tables of colour and number. */
  function scores(s, run, stepB, names, same) {
    C.byId("compare-scores-title").textContent = C.data.words(s.measure).title;
    const place = C.byId("compare-scores");
    const table = C.byId("compare-table");
    const runB = C.data.index.runs[s.runb];
    const near = (index, step) => {
      const found = C.data.scores(index, s.measure);
      return found ? C.data.nearest(found.steps, step) : step;
    };
    const all = (r) => [...Array(r.n_layers * r.n_heads).keys()];
    const values = [[s.run, run, s.a], [s.runb, runB, stepB]].map(([index, r, step]) => all(r).map((h) => C.data.value(index, s.measure, h, near(index, step)) ?? null));
    const range = C.data.range(s.run, s.measure);
    if (!same) {
      C.once(place, JSON.stringify([values, names, s.head, s.headb, range, C.isDark()]), () =>
        C.fill(place, scoreMap(run, values[0], range, names[0], false, C.head()), scoreMap(runB, values[1], range, names[1], false, C.headB()), C.el("p", { class: "note" }, "The models have different numbers of layers or heads, so B − A has no meaning head by head."))
      );
      C.fill(table);
      table.copyscopeKey = null;
      C.numbersOf.compare = { a: values[0][C.head()], b: values[1][C.headB()], difference: null };
      return;
    }
    const heads = all(run);
    const change = heads.map((h) => (values[0][h] === null || values[1][h] === null ? null : values[1][h] - values[0][h]));
    const far = Math.max(Math.abs(range.low), Math.abs(range.high));
    const both = [values[0], values[1], change];
    C.once(place, JSON.stringify([both, names, s.head, range, C.isDark()]), () => {
      C.fill(place, both.map((v, i) => scoreMap(run, v, i === 2 ? { signed: true, low: -far, high: far } : range, names[i], i === 2, C.head())));
    });
    const order = [...heads].filter((h) => change[h] !== null).sort((x, y) => Math.abs(change[y]) - Math.abs(change[x])).slice(0, 20);
    C.table(table, {
      title: `${C.data.words(s.measure).title}: the heads that differ most`, name: "compare",
      columns: ["head", names[0], names[1], "B − A"],
      rows: order.map((h) => [C.data.headName(run, h), values[0][h], values[1][h], change[h]]),
      pressed: order.map((h, i) => (h === C.head() ? i : -1)).filter((i) => i >= 0),
      links: (i) => C.go({ head: C.headText(run, order[i]) }),
      tidy: () => ({
        columns: ["run_a", "step_a", "run_b", "step_b", "layer", "head", "measure", "value_a", "standard_error_a", "value_b", "standard_error_b", "difference"],
        rows: order.map((h) => {
          const [a, b] = [[s.run, s.a], [s.runb, stepB]].map(([index, step]) => C.data.cells(index, s.measure, h, near(index, step)));
          return [run.name, near(s.run, s.a), runB.name, near(s.runb, stepB), ...C.layerAndHead(run, h), s.measure, ...a, ...b, C.meant(change[h])];
        }),
      }),
    });
    C.numbersOf.compare = { a: values[0][C.head()], b: values[1][C.head()], difference: change[C.head()] };
  }

  function scoreMap(run, values, range, title, signed, chosen) {
    const small = run.n_heads > 8;
    const rows = [...Array(run.n_layers).keys()].map((layer) =>
      C.el(
        "tr",
        {},
        C.el("th", { scope: "row" }, `L${layer}`),
        [...Array(run.n_heads).keys()].map((h) => {
          const head = layer * run.n_heads + h;
          const value = values[head];
          const style = `background:${C.css(value, range, C.color("missing"))};color:${C.inkOn(value, range)}`;
          const text = small ? "" : signed ? C.signed(value, 2) : C.number(value, 2);
          const label = `${C.data.headName(run, head)}: ${C.number(value)}`;
          return C.el("td", { style, class: head === chosen ? "chosen" : null, title: label }, small ? C.el("span", { class: "unseen" }, C.number(value)) : text);
        })
      )
    );
    const columns = [C.el("td", {}), ...[...Array(run.n_heads).keys()].map((h) => C.el("th", { scope: "col" }, `H${h}`))];
    return C.el("figure", {}, C.el("figcaption", {}, title), C.el("div", { class: "scroll" }, C.el("table", { class: "scores" + (small ? " small" : "") }, C.el("thead", {}, C.el("tr", {}, columns)), C.el("tbody", {}, rows))));
  }

  function attention(s, runA, runB, stepB, names, same, other) {
    const place = C.byId("compare-attention");
    const [head, headB] = [C.head(), C.headB()];
    C.byId("compare-attention-title").textContent = `Attention of ${C.data.headName(runA, head)}${same ? "" : ` and ${C.data.headName(runB, headB)}`}`;
    const promptB = C.data.prompt(s.runb, s.prompt) || runB.prompts[0]; // another model may have another text
    const promptA = C.data.prompt(s.run, s.prompt);
    const a = C.data.attention(s.run, s.prompt, s.a);
    const b = promptB && C.data.attention(s.runb, promptB.id, stepB);
    if (!promptA || !promptB) {
      C.fill(place, C.el("p", { class: "note" }, promptA ? "The other run has no attention for this prompt." : "This page has no attention."));
      place.copyscopeKey = null;
      return;
    }
    if (!a || !b) {
      const why = C.data.attentionProblem(s.run, s.prompt, s.a) || C.data.attentionProblem(s.runb, promptB.id, stepB);
      place.classList.toggle("waiting", !why);
      if (why) {
        C.fill(place, C.el("p", { class: "note" }, why));
        place.copyscopeKey = null;
      }
      return;
    }
    place.classList.remove("waiting");
    const comparable = same && a.nTokens === b.nTokens && promptA.tokens.every((t, i) => t === promptB.tokens[i]);
    C.once(place, JSON.stringify([s.run, s.runb, s.prompt, promptB.id, a.step, b.step, head, headB, C.isDark(), C.generation]), () => {
      const picture = (title, paint) => {
        const canvas = C.el("canvas", { class: "pixels large", role: "img", "aria-label": title });
        paint(canvas);
        return C.el("figure", {}, C.el("figcaption", {}, title), canvas);
      };
      const saved = (attention, run, step) => `${other ? run.name + ", " : ""}step ${C.number(attention.step)}${attention.step === step ? "" : ` (nearest saved to ${C.number(step)})`}`;
      C.fill(
        place,
        picture("A: " + saved(a, runA, s.a), (canvas) => C.paintAttention(canvas, a, head)),
        picture("B: " + saved(b, runB, stepB), (canvas) => C.paintAttention(canvas, b, headB)),
        comparable ? picture("B − A; blue: B lower, red: B higher", (canvas) => C.paintDifference(canvas, a, b, head)) : C.el("p", { class: "note" }, `The ${same ? "two runs have different tokens here" : "models have different shapes"}, so B − A has no meaning.`)
      );
    });
  }
})(Copyscope);
