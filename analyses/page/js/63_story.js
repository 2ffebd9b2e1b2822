"use strict";
// The story in a line: what formed when, and what removing the most needed head costs; each event leads to its place.
(function (C) {
  /** Where an event leads: its head and checkpoint in the map, or the table of removals. */
  function place(run, event) {
    const head = event.head === null ? {} : { head: C.headText(run, event.head) };
    if (event.kind === "removal") return { view: "heads", sort: "effect", step: C.data.nearest(run.steps, event.step), ...head, ...((run.ablations || {})[event.measure] ? { measure: event.measure } : {}) };
    return { view: "map", step: C.data.nearest(run.steps, event.step), ...head };
  }

  C.drawStory = function () {
    const [s, run] = [C.state(), C.run()];
    const story = run.story || { events: [] };
    C.once(C.byId("events"), JSON.stringify([s.run, story.events, C.generation]), () => {
      const parts = story.events.flatMap((event, i) => {
        const sign = i === 0 ? null : C.el("span", { "aria-hidden": "true" }, event.kind === "removal" ? "·" : "→");
        const chip = event.step === null
          ? C.el("span", { class: "event missing" }, event.text)
          : C.el("button", { type: "button", class: "event", "data-kind": event.kind, title: event.detail, onclick: () => C.go(place(C.run(), event)) }, event.text);
        return [sign, chip];
      });
      C.fill(C.byId("events"), parts.length ? parts : C.el("span", { class: "event missing" }, "Too few checkpoints to say when anything formed."));
    });
    const lines = run.summary || C.data.index.summary || [];
    C.once(C.byId("summary-lines"), JSON.stringify([s.run, lines]), () => C.fill(C.byId("summary-lines"), lines.map((line) => C.el("li", {}, line))));
    C.byId("summary").hidden = !lines.length;
    const given = story.from !== null && story.from !== undefined;
    const range = (low, high) => String(s.from === low && s.to === high);
    C.byId("zoom-story").hidden = !given;
    C.byId("zoom-story").setAttribute("aria-pressed", range(story.from, story.to));
    C.byId("zoom-out").setAttribute("aria-pressed", range(null, null));
    const rise = C.riseRange(run);
    C.byId("zoom-rise").hidden = !rise;
    if (rise) C.byId("zoom-rise").setAttribute("aria-pressed", range(rise.from, rise.to));
  };

  /** The steps around the rise of copying, or null where it has not formed. */
  C.riseRange = function (run) {
    const found = run.copying;
    if (!found || found.start === null || found.start === undefined) return null;
    return { from: Math.floor(found.start / 2), to: Math.ceil(found.end * 2) };
  };
  C.storyRange = function (run) {
    const { from = null, to = null } = run.story || {};
    return { from, to };
  };
})(Copyscope);
