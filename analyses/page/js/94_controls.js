"use strict";
// The step cursor, the menus, the views and the keys: everything that changes the state.
(function (C) {
  const KEYS = [
    ["← →", "previous or next checkpoint (Shift: ten)"], ["Home End", "first, last checkpoint"], ["Space", "play or stop"], ["↑ ↓", "on a map: next head; on the attention matrix: next query token"], ["[ ]", "previous, next query token"],
    ["j k", "next, previous head"], ["/", "type a head's name"], ["p", "pin or unpin the head"], ["m", "next measure"], ["1, 2, …", "the views"], ["Enter", "on a map: its attention"], ["Ctrl Enter", "in a prompt: show it"], ["?", "this list"],
  ];
  let playing = null;
  let following = false;

  /** Whether the newest checkpoint is shown as it comes; moving the step cursor ends it. */
  C.isFollowing = () => following;
  C.follow = function (wanted) {
    following = wanted;
    const { steps } = C.run();
    if (following) C.go({ step: steps[steps.length - 1] });
    else C.redraw();
  };
  C.stopFollowing = () => (following = false);

  C.setUpControls = function () {
    const on = (id, event, action) => C.byId(id).addEventListener(event, action);
    const value = (id, field, number = false) => on(id, "change", (e) => C.go({ [field]: e.target.value === "" ? (number ? null : "") : number ? Number(e.target.value) : e.target.value }));
    on("step", "input", (e) => C.go({ step: C.run().steps[Number(e.target.value)] }));
    on("step-back", "click", () => C.moveStep(-1));
    on("step-on", "click", () => C.moveStep(1));
    on("play", "click", play);
    for (const id of ["measure", "sort", "filter", "axis", "curve", "rows", "beside", "prompt", "align", "theme", "headb", "pairs", "pool", "picture"]) value(id, id);
    for (const id of ["run", "from", "to", "a", "b", "runb"]) value(id, id, true);
    for (const id of ["prompt-side", "prompt-compare"]) value(id, "prompt");
    on("runs-curve", "change", (e) => C.runsCurve(e.target.value));
    on("flip", "change", (e) => C.go({ flip: e.target.checked ? "1" : "" }));
    on("cut", "input", (e) => C.go({ cut: Number(e.target.value) }));
    on("head", "change", (e) => {
      const head = C.headNumber(C.run(), e.target.value.trim());
      if (head === null) C.notice(`This model has no head '${e.target.value}'; it has L0H0 to ${C.data.headName(C.run(), C.run().n_layers * C.run().n_heads - 1)}.`, "note");
      else C.go({ head: C.headText(C.run(), head) });
      C.redraw();
    });
    on("head", "focus", (e) => e.target.select());
    on("follow", "click", () => C.follow(!following));
    on("pin", "click", () => C.togglePin(C.head()));
    on("zoom-out", "click", () => C.go({ from: null, to: null }));
    on("zoom-rise", "click", () => C.go(C.riseRange(C.run())));
    on("zoom-story", "click", () => C.go(C.storyRange(C.run())));
    const options = C.byId("options");
    document.addEventListener("pointerdown", (event) => {
      for (const menu of document.querySelectorAll("details.menu[open], #options[open]")) if (!menu.contains(event.target)) menu.open = false;
    });
    options.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      options.open = false;
      options.querySelector("summary").focus();
    });
    on("swap", "click", () => C.go({ a: C.state().b, b: C.state().a, ...(C.state().runb !== C.state().run ? { run: C.state().runb, runb: C.state().run } : {}) }));
    on("b-like-a", "click", C.likeA);
    on("a-here", "click", () => C.go({ a: C.state().step }));
    on("b-here", "click", () => C.go({ b: C.state().step }));
    on("vis-head", "click", () => C.working(C.showCircuitsVis(false)));
    on("vis-layer", "click", () => C.working(C.showCircuitsVis(true)));
    on("copy-python", "click", C.copyPython);
    on("copy-link", "click", C.copyLink);
    on("keys-open", "click", () => C.byId("keys").showModal());
    C.fill(C.byId("keys-list"), KEYS.map(([key, words]) => C.el("div", {}, C.el("dt", {}, C.el("kbd", {}, key)), C.el("dd", {}, words))));
    tabs();
    document.addEventListener("keydown", keys);
  };

  function tabs() {
    const place = C.byId("tabs");
    C.fill(place, C.VIEWS.map(([view, title]) => C.el("button", { type: "button", role: "tab", id: "tab-" + view, "aria-controls": "view-" + view, onclick: () => C.go({ view }) }, title)));
    place.addEventListener("keydown", (event) => {
      const views = C.views();
      const at = views.findIndex(([view]) => view === C.state().view);
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: views.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const view = views[(to + views.length) % views.length][0];
      C.go({ view });
      C.byId("tab-" + view).focus();
    });
  }

  function play() {
    if (playing !== null) return stop();
    const { steps } = C.run();
    if (C.state().step === steps[steps.length - 1]) C.go({ step: steps[0] });
    playing = setInterval(() => {
      const before = C.state().step;
      C.moveStep(1);
      if (C.state().step === before) stop();
    }, 350);
    return C.redraw();
  }
  function stop() {
    clearInterval(playing);
    playing = null;
    C.redraw();
  }
  C.isPlaying = () => playing !== null;

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const { target } = event;
    if (target.closest("textarea, select, input:not([type=range]):not([type=checkbox])")) return;
    const onButton = target.closest("button, summary, a, input[type=checkbox]");
    if (onButton && (event.key === " " || event.key === "Enter")) return;
    const { steps } = C.run();
    const heads = C.orderedHeads();
    const move = (by) => {
      if (!heads.length) return;
      const at = heads.indexOf(C.head());
      C.go({ head: C.headText(C.run(), heads[Math.max(0, Math.min(heads.length - 1, at + by))]) });
    };
    const token = (by) => {
      const prompt = C.data.prompt(C.state().run, C.state().prompt);
      if (prompt) C.go({ query: Math.max(0, Math.min(prompt.tokens.length - 1, C.state().query + by)) });
    };
    const actions = {
      ArrowLeft: () => C.moveStep(event.shiftKey ? -10 : -1),
      ArrowRight: () => C.moveStep(event.shiftKey ? 10 : 1),
      Home: () => C.go({ step: steps[0] }),
      End: () => C.go({ step: steps[steps.length - 1] }),
      " ": play,
      "[": () => token(-1),
      "]": () => token(1),
      j: () => move(1),
      k: () => move(-1),
      p: () => C.togglePin(C.head()),
      m: () => {
        const { scores, effects } = C.choices(C.run());
        const all = [...scores, ...effects];
        C.go({ measure: all[(all.indexOf(C.state().measure) + 1) % all.length] });
      },
      "/": () => C.byId("head").focus(),
      "?": () => C.byId("keys").showModal(),
    };
    C.views().forEach(([view], i) => (actions[String(i + 1)] = () => C.go({ view })));
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  /** Brings every control in line with the state. */
  C.drawControls = function () {
    const [s, run] = [C.state(), C.run()];
    const { runs } = C.data.index;
    C.byId("run-control").hidden = runs.length < 2;
    C.options(C.byId("run"), [["", runs.map((r, i) => [i, r.name])]], String(s.run));
    const { scores, effects } = C.choices(run);
    const named = (names) => names.map((m) => [m, C.data.words(m).title]);
    const groups = [[effects.length ? "Scores" : "", named(scores)], ...(effects.length ? [["Effect of ablating a head", named(effects)]] : [])];
    C.options(C.byId("measure"), groups, s.measure);
    C.options(C.byId("beside"), [["", [["none", "none"]]], ...groups], s.beside);
    const heads = [...Array(run.n_layers * run.n_heads).keys()];
    C.once(C.byId("head-names"), `${run.n_layers}x${run.n_heads}`, () => C.fill(C.byId("head-names"), heads.map((h) => C.el("option", { value: C.data.headName(run, h) }))));
    if (document.activeElement !== C.byId("head") || C.byId("head").value === "") C.byId("head").value = C.data.headName(run, C.head());
    C.options(C.byId("sort"), [["", C.SORTS]], s.sort);
    C.options(C.byId("filter"), [["", C.FILTERS]], s.filter);
    C.options(C.byId("rows"), [["", C.ROWS]], s.rows);
    C.options(C.byId("axis"), [["", C.AXES.filter(([a]) => a !== "tokens" || C.hasTokens(run))]], s.axis);
    C.options(C.byId("curve"), [["", Object.entries(C.curveGroups(run)).map(([key, group]) => [key, group.title])]], s.curve);
    const prompts = [["", run.prompts.map((p) => [p.id, p.title])]];
    for (const id of ["prompt", "prompt-side", "prompt-compare"]) C.options(C.byId(id), prompts, s.prompt);
    const steps = run.steps.map((step) => [step, C.number(step)]);
    const withOwn = (own) => [["", [["", "–"], ...(own === null || run.steps.includes(own) ? [] : [[own, C.number(own)]]), ...steps]]];
    C.options(C.byId("from"), withOwn(s.from), s.from === null ? "" : String(s.from));
    C.options(C.byId("to"), withOwn(s.to), s.to === null ? "" : String(s.to));
    C.options(C.byId("pool"), [["", C.POOLS]], s.pool);
    C.options(C.byId("picture"), [["", C.PICTURES]], s.picture);
    C.options(C.byId("theme"), [["", [["", "as the system"], ["light", "light"], ["dark", "dark"]]]], s.theme);
    C.byId("flip").checked = s.flip === "1";
    C.byId("follow").hidden = !(C.data.source.live && (following || (run.planned && run.steps[run.steps.length - 1] < run.planned)));
    C.byId("follow").setAttribute("aria-pressed", String(following));
    const slider = C.byId("step");
    slider.max = String(run.steps.length - 1);
    slider.value = String(run.steps.indexOf(s.step));
    const words = C.stepWords(run, s.step);
    slider.setAttribute("aria-valuetext", words);
    const [step, ...tokens] = words.split(", "); // the tokens are left out where there is no room
    C.fill(C.byId("step-words"), step, C.el("span", { class: "wordy" }, tokens.map((t) => ", " + t)));
    const button = C.byId("play");
    button.textContent = C.isPlaying() ? "❚❚ Stop" : "▶ Play";
    button.setAttribute("aria-pressed", String(C.isPlaying()));
    const pinned = C.pins().includes(C.head());
    C.byId("pin").textContent = pinned ? "Unpin" : "Pin";
    C.byId("pin").setAttribute("aria-pressed", String(pinned));
    const about = C.data.words(s.measure);
    C.byId("measure-name").textContent = about.title + ".";
    C.byId("measure-meaning").textContent = [about.meaning, about.cannot_tell && `Cannot tell: ${about.cannot_tell}.`, about.source && `Source: ${about.source}.`, about.scale && `Range: ${about.scale}.`].filter(Boolean).join(" ") || "No description.";
    for (const [view] of C.VIEWS) {
      const chosen = view === s.view;
      const tab = C.byId("tab-" + view);
      if (chosen && tab.getAttribute("aria-selected") !== "true") C.byId("tabs").scrollLeft = tab.offsetLeft - 60; // a narrow page
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      tab.hidden = view === "family" && !C.hasFamily();
      C.byId("view-" + view).hidden = !chosen;
    }
  };
})(Copyscope);
