"use strict";
// Forks: the tree of each family on a step axis (a trunk, then branches, each with what formed in it), and where runs are still one.
(function (C) {
  const SIGNS = { "previous-token": ["○", "previous-token head", () => (C.isDark() ? "#56b4e9" : "#0072b2")], induction: ["◆", "induction head", () => "#d55e00"], copying: ["★", "copying", () => C.color("ink")] };
  const [WIDE_ROW, NARROW_ROW, INDENT] = [34, 54, 14]; // pixels
  const MAX_LABEL = 0.36; // of the width
  const FONT = 12.5;

  const families = () => C.data.index.families || [];
  C.hasFamily = () => families().length > 0;

  /** Where a run stands: {branches, place}; null for one that is no fork and has none here. */
  function standing(run) {
    for (const { branches } of families()) {
      const place = branches.findIndex((one) => one.run === run);
      if (place >= 0) return { branches, place };
    }
    return null;
  }

  /** The places from a branch up to the first of its family: [[place, last step that is shared with the branch]]. */
  function upwards(branches, place) {
    const out = [];
    for (let [here, least] = [place, Infinity]; here !== null; ) {
      out.push([here, least]);
      least = Math.min(least, branches[here].at);
      here = branches[here].parent;
    }
    return out;
  }

  /** Up to which step two runs have the same checkpoints; null where they are not of one family. */
  C.sharedSteps = function (one, other) {
    const [a, b] = [standing(one), standing(other)];
    if (!a || !b || a.branches !== b.branches || one === other) return null;
    const seen = new Map(upwards(a.branches, a.place));
    for (const [place, least] of upwards(b.branches, b.place)) if (seen.has(place)) return Math.min(least, seen.get(place));
    return null;
  };

  /** The step of run `other` that is as long after its fork as `step` after that of run `one`; of a run and a fork of it the same step. */
  C.sinceFork = function (one, other, step) {
    const [a, b] = [standing(one), standing(other)];
    if (!a || !b) return step;
    const above = (x, y) => x.branches === y.branches && upwards(y.branches, y.place).some(([place]) => place === x.place);
    return above(a, b) || above(b, a) ? step : step - a.branches[a.place].at + b.branches[b.place].at;
  };

  /** What two runs of a family share, in a sentence or two; "" where they are of none. */
  C.sharedWords = function (one, other, stepA, stepB) {
    const shared = C.sharedSteps(one, other);
    if (shared === null) return "";
    const titles = [one, other].map((run) => {
      const { branches, place } = standing(run);
      return branches[place].title;
    });
    const same = stepA === stepB && stepA <= shared ? " At this step A and B are one checkpoint." : "";
    return `A (${titles[0]}) and B (${titles[1]}): the first ${C.number(shared)} steps are shared, the same checkpoints.${same}`;
  };

  /** How the lines of a family look: the first run dark, null and placebo forks grey, changes in colours; by branch. */
  function looks() {
    const out = new Map();
    let changed = 0;
    for (const { branches } of families()) {
      for (const branch of branches) {
        const grey = [C.color("soft"), "circle", branch.kind === "null" ? "2 3" : "6 3"];
        out.set(branch, branch.parent === null ? [C.color("ink"), "circle", ""] : branch.kind === "changed" ? C.look(changed++) : grey);
      }
    }
    return out;
  }

  /** The lines that curves of all runs are made of: [{run, from, to, shift, name, look, silent}]: of `run` the steps `from` to `to`, and what is
   * taken from them (null: nothing). Forks begin where they were forked; where their parent is not on the page, one of them lends its first steps. */
  C.branchParts = function (align) {
    const { runs } = C.data.index;
    const whole = (run) => ({ run, from: 0, to: Infinity, shift: null, name: runs[run].name });
    if (align === "formation") return runs.map((_, i) => whole(i));
    const [out, look, drawn] = [[], looks(), new Set()];
    for (const { branches } of families()) {
      const placebos = branches.filter((one) => one.kind === "placebo" && one.run !== null);
      branches.forEach((branch, place) => {
        const children = branches.filter((one) => one.parent === place);
        const silent = branch.kind === "placebo" && branch !== placebos[0];
        const own = branch.parent === null ? nameOf(branch) : branch.kind === "placebo" && placebos.length > 1 ? `${placebos.length} placebo forks` : branch.title;
        const name = branch.parent !== null && families().length > 1 ? `${nameOf(branches[0])}: ${own}` : own;
        const part = { from: branch.at, to: Infinity, shift: null, name, look: look.get(branch), silent };
        if (branch.run !== null) drawn.add(branch.run);
        if (align === "fork") {
          if (branch.run === null) return;
          if (branch.parent !== null) out.push({ ...part, run: branch.run, shift: branch.at });
          const steps = [...new Set(children.map((one) => one.at))].filter((at) => branch.parent === null || at !== branch.at);
          const [color, mark] = part.look;
          for (const at of steps) out.push({ ...part, run: branch.run, from: at, shift: at, silent: false, look: branch.parent === null && steps.length === 1 ? part.look : [color, mark, "1 3"], name: steps.length > 1 || branch.parent !== null ? `${name} from ${C.number(at)}` : name });
        } else if (branch.run !== null) out.push({ ...part, run: branch.run });
        else if (children.length) {
          let lender = children[0];
          while (lender.run === null) lender = branches.find((one) => one.parent === branches.indexOf(lender));
          out.push({ ...part, run: lender.run, to: children[0].at, name: `${name} (shared steps)` });
        }
      });
    }
    if (align !== "fork") runs.forEach((_, i) => drawn.has(i) || out.push(whole(i)));
    return out;
  };

  /** What formed in a branch: [{kind, step, head, measure}]. */
  function formed(branch) {
    const run = branch.run === null ? null : C.data.index.runs[branch.run];
    return (((run || {}).story || {}).events || []).filter((event) => SIGNS[event.kind] && event.step !== null && event.step !== undefined);
  }

  /** What is marked on each line of a tree: what formed before a fork belongs to the line that it formed on. */
  function marks(branches) {
    const out = branches.map(() => []);
    branches.forEach((branch, place) => {
      for (const event of formed(branch)) {
        let owner = place;
        while (branches[owner].parent !== null && event.step <= branches[owner].at) owner = branches[owner].parent;
        const known = owner !== place && (branches[owner].run !== null || out[owner].some((one) => one.kind === event.kind));
        if (!known) out[owner].push({ ...event, run: branch.run });
      }
    });
    return out;
  }

  /** The first step worth showing: before the first fork and what formed; null for all. */
  C.familyFrom = function () {
    const all = families().flatMap(({ branches }) => branches);
    const forks = all.filter((one) => one.parent !== null).map((one) => one.at / 2);
    const from = Math.floor(Math.min(...forks, ...all.flatMap(formed).map((event) => event.step / 1.5)));
    return from > 0 && Number.isFinite(from) ? from : null;
  };

  C.drawFamily = function () {
    const s = C.state();
    const { runs } = C.data.index;
    C.fill(C.byId("family-words"), families().map(({ branches }) => C.el("p", {}, words(branches))));
    const place = C.byId("family-figure");
    C.once(place, JSON.stringify([s.run, s.axis, place.clientWidth, C.isDark(), C.generation]), () => {
      const caption = C.el("figcaption", {}, `${Object.values(SIGNS).map(([sign, name]) => `${sign} ${name}`).join(", ")}: the step at which it formed. Thick: a change that ends. A click on a branch opens it.`);
      C.fill(place, tree(s, place.clientWidth), caption);
      const open = (event) => {
        const node = event.target.closest("[data-run]");
        if (!node) return false;
        const { run, step, head, measure } = node.dataset;
        const entry = runs[Number(run)];
        C.go({ run: Number(run), view: "map", ...(step ? { step: C.data.nearest(entry.steps, Number(step)) } : {}), ...(head ? { head } : {}), ...(measure && entry.measures.includes(measure) ? { measure } : {}) });
        return true;
      };
      place.onclick = open;
      place.onkeydown = (event) => {
        if ((event.key === "Enter" || event.key === " ") && open(event)) {
          event.preventDefault();
          event.stopPropagation();
        }
      };
    });
    C.drawRuns(C.byId("family-curves"));
    tables();
  };

  function words(branches) {
    const forks = branches.filter((one) => one.parent !== null);
    const steps = [...new Set(forks.map((one) => one.at))].sort((x, y) => x - y).map((at) => C.number(at));
    const listed = steps.length > 1 ? `steps ${steps.slice(0, -1).join(", ")} and ${steps.at(-1)}` : `step ${steps[0]}`;
    return `${nameOf(branches[0])}, and ${forks.length} fork${forks.length > 1 ? "s" : ""} from ${listed} on. ${steps.length > 1 ? "The steps before a fork are" : `The first ${steps[0]} steps are`} shared: the same checkpoints, trained and measured once.`;
  }

  const nameOf = (branch) => (branch.run === null ? branch.name : branch.parent === null ? C.data.index.runs[branch.run].name : branch.label);

  function tree(s, width) {
    const { runs } = C.data.index;
    const narrow = width < 640;
    const tall = narrow ? NARROW_ROW : WIDE_ROW;
    const depth = (branches, place) => upwards(branches, place).length - 1;
    const label = (branch) => nameOf(branch) + (branch.run === null ? " (not on this page)" : "");
    const widest = Math.max(...families().flatMap(({ branches }) => branches.map((one, i) => C.textWidth(label(one), FONT, 600) + INDENT * depth(branches, i))));
    const left = narrow ? 12 : Math.min(width * MAX_LABEL, widest + 22);
    const right = narrow ? 14 : 30;
    const plot = Math.max(60, width - left - right);
    const all = families().flatMap(({ branches }) => branches).flatMap((one) => (one.run === null ? [one.at] : runs[one.run].steps));
    const axis = C.axis({ steps: [...new Set(all)].sort((x, y) => x - y) }, s.axis === "linear" ? "linear" : "log", C.familyFrom());
    const x = (step) => Math.max(left, Math.min(left + plot, axis.x(axis.position(step), left, plot)));
    const gap = 14;
    const height = families().reduce((sum, { branches }) => sum + branches.length * tall + gap, 0) + 34;
    const [ink, soft, line, paper] = ["ink", "soft", "line", "paper"].map(C.color);
    const svg = C.svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "font-size": 11, "aria-label": "Tree of forks; the table below has the same" });
    for (const [at, text] of axis.ticks(plot < 420 ? 5 : 12)) {
      const tick = axis.x(at, left, plot);
      svg.append(C.svg("line", { x1: tick, x2: tick, y1: 0, y2: height - 32, stroke: line }), C.svg("text", { x: tick, y: height - 18, "text-anchor": "middle", fill: soft }, text));
    }
    svg.append(C.svg("text", { x: left + plot / 2, y: height - 3, "text-anchor": "middle", fill: soft }, axis.title));
    const look = looks();
    let top = 0;
    for (const { branches } of families()) {
      const y = (place) => top + (place + 1) * tall - (narrow ? 10 : 12);
      const under = (place) => branches.map((one, i) => (one.parent === place ? i : -1)).filter((i) => i >= 0);
      const found = marks(branches);
      branches.forEach((branch, place) => {
        for (const at of new Set(under(place).map((i) => branches[i].at))) {
          const last = Math.max(...under(place).filter((i) => branches[i].at === at));
          svg.append(C.svg("path", { d: `M${x(at)},${y(place)}V${y(last)}`, fill: "none", stroke: soft, "stroke-width": 1.2 }), C.svg("text", { x: x(at) - 5, y: y(place) + 13, "text-anchor": "end", fill: soft, "font-size": 10, ...halo(paper) }, `fork at ${C.stepWord(at)}`));
        }
      });
      branches.forEach((branch, place) => {
        const run = branch.run === null ? null : runs[branch.run];
        const color = look.get(branch)[0];
        const chosen = branch.run === s.run;
        const end = run ? run.steps.at(-1) : Math.max(...under(place).map((i) => branches[i].at));
        const [from, to] = [branch.parent === null ? left : x(branch.at), x(Math.max(end, branch.at))];
        const group = C.svg("g", run ? { "data-run": branch.run, class: "node" } : {});
        group.append(C.svg("title", {}, run ? `${branch.title} (${run.name})` : `${branch.name} is not among the runs on this page`));
        if (run) group.append(C.svg("rect", { x: 0, y: y(place) - tall + 14, width, height: tall - 2, fill: "transparent" }));
        if (branch.until !== null) group.append(C.svg("line", { x1: x(branch.at), x2: x(Math.min(branch.until, Math.max(end, branch.at))), y1: y(place), y2: y(place), stroke: color, "stroke-width": 9, opacity: 0.35 }));
        group.append(C.svg("line", { x1: from, x2: to, y1: y(place), y2: y(place), stroke: color, "stroke-width": chosen ? 3 : 1.8, "stroke-dasharray": run ? null : "2 3" }));
        if (branch.parent !== null) group.append(C.svg("circle", { cx: from, cy: y(place), r: 3, fill: color }));
        const indent = INDENT * depth(branches, place);
        const weight = chosen ? 700 : branch.parent === null ? 600 : 400;
        const text = { x: 4 + indent, y: narrow ? y(place) - 22 : y(place) + 4, fill: run ? ink : soft, "font-size": FONT, "font-weight": weight, ...halo(paper) };
        group.append(C.svg("text", run ? { ...text, tabindex: "0", role: "button", "data-run": branch.run, "aria-label": `Open ${branch.title}`, "aria-current": chosen ? "true" : null } : text, C.fitText(label(branch), (narrow ? width : left) - indent - 14, FONT, weight)));
        svg.append(group);
        marked(svg, found[place], y(place), x, paper, soft);
      });
      top += branches.length * tall + gap;
    }
    return svg;
  }

  const halo = (paper) => ({ stroke: paper, "stroke-width": 3, "paint-order": "stroke", "stroke-linejoin": "round" });

  /** Signs where something formed, each a button, with its step above it where there is room. */
  function marked(svg, events, y, x, paper, soft) {
    const { runs } = C.data.index;
    let free = -Infinity;
    for (const event of [...events].sort((one, other) => one.step - other.step)) {
      const [sign, , color] = SIGNS[event.kind];
      const [at, run, number] = [x(event.step), runs[event.run], C.stepWord(event.step)];
      const head = event.head === null || event.head === undefined ? null : C.headText(run, event.head);
      const node = C.svg("g", { class: "node", tabindex: "0", role: "button", "data-run": event.run, "data-step": event.step, "data-head": head, "data-measure": event.measure || null, "aria-label": `${event.text}: open it` });
      node.append(C.svg("title", {}, event.detail ? `${event.text} (${event.detail})` : event.text), C.svg("circle", { cx: at, cy: y, r: 11, fill: "transparent" }));
      if (sign === "○") node.append(C.svg("circle", { cx: at, cy: y, r: 7, fill: paper }), C.svg("circle", { cx: at, cy: y, r: 4.2, fill: paper, stroke: color(), "stroke-width": 2 }));
      else node.append(C.svg("text", { x: at, y: y + 4.5, "text-anchor": "middle", "font-size": 14, fill: color(), ...halo(paper) }, sign));
      const half = C.textWidth(number, 10) / 2 + 3;
      if (at - half >= free) {
        node.append(C.svg("text", { x: at, y: y - 9, "text-anchor": "middle", "font-size": 10, fill: soft, ...halo(paper) }, number));
        free = at + half;
      }
      svg.append(node);
    }
  }

  /** A table of each family in its own element, under the heading of the first. */
  function tables() {
    const fill = (id, key, title, options) => {
      const place = C.byId(id);
      const shown = families().filter((family) => family[key] && family[key].rows.length);
      C.once(place, JSON.stringify([shown.length, C.generation]), () => C.fill(place, shown.length ? C.el("h2", {}, title) : null, shown.map(() => C.el("div", {}))));
      shown.forEach((family, i) => C.table(place.querySelectorAll(":scope > div")[i], { ...family[key], title: shown.length > 1 ? nameOf(family.branches[0]) : "", tidy: family[key].tidy && (() => family[key].tidy), name: `forks ${key}`, ...options(family) }));
      return shown.length;
    };
    const note = "By chance: between these values one more run without the change would lie in 95 of 100 cases, judged from the placebo forks and their parent. Of twenty comparisons one lies outside by chance.";
    const held = fill("family-chance", "chance", "Changes held against chance", () => ({ note, words: true }));
    const alone = !held && families().some(({ branches }) => branches.some((one) => one.kind === "changed"));
    if (alone) C.fill(C.byId("family-chance"), C.el("p", { class: "note" }, "There are no placebo forks here, so nothing tells how far chance alone would have moved these steps; add some with ", C.el("code", {}, "copyscope fork … --placebo 3"), "."));
    C.byId("family-chance").copyscopeKey = alone ? null : C.byId("family-chance").copyscopeKey;
    fill("family-formed", "formed", "What formed when", (family) => ({
      links: (i) => family.branches[i].run !== null && C.go({ run: family.branches[i].run, view: "map" }),
      pressed: family.branches.map((one, i) => (one.run === C.state().run ? i : -1)).filter((i) => i >= 0),
      note: "What formed by a fork's step formed in the steps that it shares.",
    }));
  }
})(Copyscope);
