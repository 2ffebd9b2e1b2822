"use strict";
// Pointer and keys on a map: hover reads a cell, a click or Enter chooses it, dragging sideways zooms.
(function (C) {
  /** Everything known about a cell, as pairs of a name and a value in words. */
  C.cellFacts = function (measure, head, step) {
    const [s, run] = [C.state(), C.run()];
    const words = C.data.words(measure);
    const value = C.data.value(s.run, measure, head, step);
    const beside = (suffix) => C.data.value(s.run, measure + suffix, head, step) ?? null;
    const facts = [[words.title, value === null || value === undefined ? "not measured" : C.number(value) + (words.unit ? " " + words.unit : "")]];
    if (beside("_selectivity") !== null) facts.push(["selectivity", `${C.number(beside("_selectivity"), beside("_selectivity") < 10 ? 1 : 0)} × uniform attention`]);
    if (beside("_null") !== null) facts.push(["null (random targets)", C.number(beside("_null"))]);
    const above = C.data.isAbove(run, measure, head);
    if (above !== null) facts.push(["final step", above ? "above chance" : "not distinguishable from chance"]);
    const found = C.data.formation(run, measure, head);
    if (found) facts.push(["formation", C.formationWords(found)]);
    return facts;
  };
  C.cellWords = (measure, head, step) => [
    `${C.data.headName(C.run(), head)}, step ${C.number(step)}`,
    ...C.cellFacts(measure, head, step).map(([name, value]) => `${name}: ${value}`),
  ];

  const STATES = { never: "not formed", weak: "weak rise", unconfirmed: "too late to confirm" };
  C.stateWords = (state) => STATES[state] || state;
  C.formationWords = function (found) {
    const state = C.stateWords(found.state);
    if (found.step === null) return state || "not formed";
    const around = found.low !== null && found.low !== undefined ? ` (95 %: ${C.number(Math.round(found.low))} to ${C.number(Math.round(found.high))})` : "";
    return `${state || "formed"} at step ${C.number(Math.round(found.step))}${around}`;
  };

  C.mapInput = function (map) {
    const { over } = map;

    function cellAt(event) {
      if (!map.scores) return null;
      const box = over.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      const r = Math.floor((y - map.top) / map.height);
      if (r < 0 || r >= map.rows.length || x < map.frame.left || x > map.frame.left + map.frame.plot) return null;
      const at = map.axis.at(x, map.frame.left, map.frame.plot);
      const cell = map.axis.cells(map.steps).find(([a, b]) => at >= a && at <= b);
      if (!cell) return null;
      return { x, head: C.cellOf(map.scores, map.rows[r], cell[2]).head, step: map.steps[cell[2]] };
    }

    C.onAxis(over, () => map.scores && map.frame, {
      hover(x, event) {
        const cell = cellAt(event);
        C.hovered = cell && { measure: map.measure, head: cell.head, step: cell.step };
        C.tip(cell && C.cellWords(map.measure, cell.head, cell.step), event.clientX, event.clientY);
      },
      leave() {
        C.hovered = null;
        C.tip(null);
      },
      click(x, event) {
        const cell = cellAt(event);
        if (cell) choose(cell.head, cell.step);
      },
      drag(low, high, done, moved) {
        map.drag = done ? null : { from: low, to: high };
        const at = (x) => map.axis.at(x, map.frame.left, map.frame.plot);
        if (done && moved) C.zoom(map.axis, at(low), at(high));
        else C.paintMapCursor(map);
      },
    });

    function choose(head, step) {
      const run = C.run();
      C.go({ head: C.headText(run, head), step: C.data.nearest(run.steps, step) });
      map.read.textContent = C.cellWords(map.measure, head, step).join("; ") + ".";
    }

    over.addEventListener("keydown", (event) => {
      const [s, run] = [C.state(), C.run()];
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const row = map.rows ? map.rows.findIndex((r) => r.heads.includes(C.head())) : -1;
      const column = run.steps.indexOf(s.step);
      const jump = event.shiftKey ? 10 : 1;
      let [r, c] = [row, column];
      if (event.key === "ArrowLeft") c -= jump;
      else if (event.key === "ArrowRight") c += jump;
      else if (event.key === "ArrowUp") r -= jump;
      else if (event.key === "ArrowDown") r += jump;
      else if (event.key === "Home") c = 0;
      else if (event.key === "End") c = run.steps.length - 1;
      else if (event.key === "Enter") {
        C.go({ view: "attention" });
        event.preventDefault();
        return;
      } else return;
      event.preventDefault();
      event.stopPropagation();
      if (!map.rows || !map.rows.length) return;
      r = Math.max(0, Math.min(map.rows.length - 1, r));
      c = Math.max(0, Math.min(run.steps.length - 1, c));
      const head = r === row ? C.head() : map.rows[r].heads[0];
      choose(head, run.steps[c]);
    });
  };

  /** A small box of text beside the pointer; null hides it. */
  C.tip = function (lines, x = 0, y = 0) {
    const box = C.byId("tip");
    box.hidden = !lines;
    if (!lines) return;
    C.fill(box, lines.map((line, i) => C.el(i ? "div" : "strong", {}, line)));
    const { offsetWidth: w, offsetHeight: h } = box;
    box.style.left = Math.max(4, Math.min(window.innerWidth - w - 8, x + 14)) + "px";
    box.style.top = (y + h + 24 > window.innerHeight ? y - h - 10 : y + 16) + "px";
  };
})(Copyscope);
