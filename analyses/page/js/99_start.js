"use strict";
// Starts the page, draws the view looked at, and watches the server where there is one.
(function (C) {
  const WATCH = { server: 4000, kernel: 20000 }; // ms between two looks at whether new checkpoints appeared; a kernel has other work
  const SOURCES = { server: C.liveSource, kernel: C.kernelSource, embedded: () => C.embeddedSource(document) };
  const parts = {};
  const timing = { redraw: 0, grid: 0, map: 0 };
  let waiting = null;
  let busy = 0;
  C.generation = 0; // grows when the index is read again: every picture is then drawn anew
  C.numbersOf = {};

  /** Counts a promise as work to wait for, and tells of its failure. */
  C.working = function (promise) {
    busy++;
    return promise.catch((error) => C.notice(error.message || String(error), "error")).finally(() => busy--);
  };

  /** Draws once, before the next frame, however often it is called. */
  C.redraw = function () {
    if (waiting === null && C.state().view) waiting = setTimeout(draw, 0);
  };

  function timed(name, action) {
    const start = performance.now();
    action();
    timing[name] = performance.now() - start;
  }

  function draw() {
    waiting = null;
    C.data.newDrawing();
    timed("redraw", () => {
      C.readTheme();
      C.drawControls();
      VIEWS[C.state().view]();
    });
  }

  const VIEWS = {
    family: () => C.drawFamily(),
    map() {
      const [s, run] = [C.state(), C.run()];
      C.drawStory();
      C.drawCurves();
      const two = s.beside !== "none";
      parts.two.figure.hidden = !two;
      // Previous-token heads come first, so their map stands first, whichever of the two menus asked for it.
      const [, second] = (run.story || {}).maps || [];
      const above = two && s.measure === second;
      const [upper, lower] = above ? [parts.two, parts.one] : [parts.one, parts.two];
      if (C.byId("maps").firstChild !== upper.figure) C.byId("maps").prepend(upper.figure);
      timed("map", () => {
        C.drawMap(parts.one, s.measure, !two || parts.one === lower);
        if (two) C.drawMap(parts.two, s.beside, parts.two === lower);
      });
      const band = run.copying && run.copying.start !== null && run.copying.start !== undefined;
      C.byId("band-words").textContent = band ? `Dashed outline: the phase change, from step ${C.number(Math.round(run.copying.start))} to ${C.number(Math.round(run.copying.end))} (${C.ruleWords(run.copying.rule || "10 to 90 % of the rise of copying")}).` : "No phase change to outline: copying did not form in this run, or there are too few checkpoints to tell when.";
      C.drawRoleWords(C.byId("role-words"));
      C.drawPositions(C.byId("positions-part"));
      C.drawSide();
      C.drawMatrix(parts.side);
      C.drawTokens(parts.sideTokens);
    },
    attention() {
      const [s, run] = [C.state(), C.run()];
      const prompt = C.data.prompt(s.run, s.prompt);
      const near = prompt ? C.data.nearest(prompt.steps, s.step) : null;
      C.byId("prompt-words").textContent = prompt ? `${prompt.tokens.length} tokens, attention at ${prompt.steps.length >= run.steps.length ? "every checkpoint" : `${prompt.steps.length} of ${run.steps.length} checkpoints`}.` : "";
      const problem = C.data.attentionProblem(s.run, s.prompt, s.step);
      C.byId("attention-step").textContent = problem || (near !== null && near !== s.step ? `Showing attention at step ${C.number(near)}, the saved checkpoint nearest to step ${C.number(s.step)}.` : "");
      C.byId("matrix-title").textContent = `${C.poolName(run)} at step ${C.number(near ?? s.step)}`;
      C.drawMatrix(parts.matrix);
      C.drawTokens(parts.tokens);
      C.drawSources(C.byId("sources"));
      C.drawLayer(C.byId("layer"));
      C.drawPredictions();
      C.drawWeights();
      timed("grid", () => C.drawGrid(C.byId("grid")));
      C.drawFilm(C.byId("film"));
      C.followCircuitsVis();
      C.byId("grid-title").textContent = `All heads at step ${C.number(near ?? s.step)}`;
      C.byId("grid-words").textContent = `Number: ${C.data.words(s.measure).title}. ◆ formed by now.`;
    },
    compare: () => C.drawCompare(),
    circuit() {
      C.drawOrder(C.byId("order-figure"), C.byId("order-table"));
      C.drawCircuit(C.byId("circuit-figure"), C.byId("circuit-table"));
    },
    heads: () => C.drawHeads(),
    report: () => C.drawReport(C.byId("view-report")),
  };

  function setUp() {
    const { index, source } = C.data;
    C.byId("app").hidden = false;
    parts.one = C.makeMap(C.byId("map-one"), "measure");
    parts.two = C.makeMap(C.byId("map-two"), "beside");
    parts.side = C.makeMatrix(C.byId("side-attention"), 300);
    parts.sideTokens = C.makeTokens(C.byId("side-tokens"));
    parts.matrix = C.makeMatrix(C.byId("matrix"), 520);
    parts.tokens = C.makeTokens(C.byId("tokens"));
    C.makeGrid(C.byId("grid"));
    C.setUpControls();
    C.setUpCurves();
    C.setUpPredictions();
    C.setUpWeights();
    for (const id of ["positions-part", "side-more"]) C.byId(id).addEventListener("toggle", C.redraw);
    const button = (words, action) => C.el("button", { type: "button", onclick: action }, words);
    const group = (name, ...buttons) => C.el("div", { class: "saves", role: "group", "aria-label": `Download ${name}` }, buttons);
    C.fill(C.byId("curves-saves"), C.el("span", { class: "note" }, "Curves:"), button("SVG", () => C.working(C.saveCurves("svg"))), button("PNG", () => C.working(C.saveCurves("png"))));
    C.byId("matrix").after(group("this attention", button("CSV", () => C.saveAttention("csv")), button("JSON", () => C.saveAttention("json")), button("SVG", () => C.saveAttention("svg")), button("PNG", () => C.saveAttention("png"))));
    C.byId("positions-figure").after(group("loss-by-position", button("SVG", () => C.saveSvg(C.byId("positions-figure"), "loss-by-position"))));
    const saver = (id, name) => C.byId(id).after(group(name, button("SVG", () => C.saveSvg(C.byId(id), name))));
    saver("family-figure", "forks");
    saver("order-figure", "formation-order");
    saver("circuit-figure", "circuit");
    C.byId("made").textContent = `copyscope ${(index.made || {}).copyscope || ""}${source.live ? ", live" : ", offline copy (no network requests)"}`;
    C.byId("prompt-form").hidden = !source.live;
    C.fill(C.byId("examples"), EXAMPLES.map((text) => button(text, () => {
      C.byId("prompt-text").value = text;
      C.working(ask());
    })));
    C.byId("prompt-text").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      C.working(ask());
    });
    // No forms: a sandboxed frame, as in a notebook, may not submit one, not even to close a dialog.
    C.byId("prompt-show").addEventListener("click", () => C.working(ask()));
    for (const close of document.querySelectorAll("dialog .close")) close.addEventListener("click", () => close.closest("dialog").close());
    window.addEventListener("hashchange", () => {
      const said = [];
      const wanted = C.readHash(location.hash, said);
      C.working(C.data.knowTyped(wanted)).then(() => C.go({ ...BLANK, ...wanted }, said, true));
    });
    window.addEventListener("resize", C.redraw);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", C.redraw);
  }
  // Text in which an induction head has something to find: names, a list, code, digits, a sentence said again.
  const EXAMPLES = [
    "Mr Dursley met Mrs Potter. Mrs Potter smiled at Mr Dursley.",
    "red green blue red green blue red green",
    "def area(width, height):\n    return width * height\n\ndef volume(width, height",
    "7 3 9 1 4 7 3 9 1",
    "The cat sat on the mat. The cat sat on the",
  ];
  const BLANK = Object.fromEntries(C.FIELDS.map((key) => [key, undefined]));

  async function ask() {
    const answer = C.byId("prompt-answer");
    answer.textContent = "Computing …";
    try {
      const prompt = await C.data.addPrompt(C.state().run, C.byId("prompt-text").value);
      answer.textContent = `${prompt.tokens.length} tokens.`;
      C.go({ prompt: prompt.id });
    } catch (error) {
      answer.textContent = error.message;
    }
  }

  /** Asks the server whether anything changed; if so the page shows it. */
  async function look() {
    try {
      const changed = await C.data.source.changed();
      C.notice("", "server");
      if (changed) {
        const before = C.data.index.runs.map((run) => run.steps.length);
        await C.data.reload();
        C.generation++;
        const more = C.data.index.runs.map((run, i) => run.steps.length - (before[i] || 0)).reduce((a, b) => a + b, 0);
        C.go(C.isFollowing() ? { step: C.run().steps.at(-1) } : {});
        if (more > 0) C.notice(`${more} new checkpoint${more > 1 ? "s" : ""}.`, "news");
      }
    } catch (error) {
      C.notice(error.message, "server");
    }
  }

  async function watch() {
    await look();
    setTimeout(watch, WATCH[document.documentElement.dataset.source]);
  }

  async function start() {
    C.readTheme();
    const { source } = document.documentElement.dataset;
    const live = source !== "embedded";
    if (live) C.notice("Reading the run's tables …", "loading");
    await C.data.load(SOURCES[source]());
    C.notice("", "loading");
    if (!C.data.index.runs.length) {
      C.notice("This page has no run.", "error");
      return;
    }
    setUp();
    const said = [];
    const wanted = C.readHash(location.hash || C.data.index.start || "", said);
    await C.working(C.data.knowTyped(wanted));
    // The default head is the one that scores highest in the end, so the scores come first.
    const { run, measure } = C.normal(wanted);
    C.data.scores(run, measure);
    await idle();
    C.go(wanted, said);
    const { steps, planned } = C.run();
    if (live && wanted.step === undefined && planned && steps.at(-1) < planned) C.follow(true); // a run that is still being trained
    await idle();
    if (live) watch();
  }

  async function idle() {
    do await new Promise((resolve) => setTimeout(resolve, 10));
    while (waiting !== null || busy > 0 || C.data.busy());
  }

  function predictedNow() {
    const found = C.predictionsNow();
    return found ? { step: found.step, p: found.p[C.query()] ?? null, top: found.top[C.query()] } : null;
  }

  /** What the page shows now, for tests and the curious. */
  function numbers() {
    const [s, run] = [C.state(), C.run()];
    const attention = C.attentionNow();
    return {
      step: s.step, tokens: C.data.tokensAt(run, s.step), run: run.name, view: s.view, measure: s.measure, head: s.head, value: C.data.value(s.run, s.measure, C.head(), s.step) ?? null,
      formation: (C.data.formation(run, C.scoreMeasure(run), C.head()) || {}).step ?? null, query: C.query(), attentionStep: attention ? attention.step : null,
      shownRow: C.attentionShown() ? C.data.row(C.attentionShown().attention, C.attentionShown().head, C.query()) : null,
      row: attention ? C.data.row(attention, C.head(), C.query()) : null, targets: attention ? attention.prompt.targets[C.query()] : null, rows: parts.one.rows ? parts.one.rows.map((r) => r.label) : null,
      predicted: s.view === "attention" ? predictedNow() : null, hovered: C.hovered || null, ms: { ...timing }, hash: C.writeHash(), lastSaved: C.lastSaved || null, lastCopied: C.lastCopied || null, ...C.numbersOf,
    };
  }

  window.copyscope = { ready: null, state: () => ({ ...C.state() }), numbers, go: C.go, idle, look, maps: () => parts };
  window.copyscope.ready = start().catch((error) => C.failed(error));
})(Copyscope);
