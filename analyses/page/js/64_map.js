"use strict";
// The formation map on canvas: a row a head (or layer), a column a checkpoint. A base picture that changes rarely, and
// over it the cursor, which changes with every step.
(function (C) {
  const TOP = 3;
  const [BARE, LABELLED] = [6, 34]; // pixels under a map, without and with the labels of the axis

  /** Builds a map's elements inside a <figure>, once. */
  C.makeMap = function (figure, field) {
    const map = { figure, field, title: C.el("h2", {}), base: C.el("canvas", { "aria-hidden": "true" }), bar: C.el("div", { class: "colorbar" }) };
    map.over = C.el("canvas", { class: "over", tabindex: "0", role: "application", "aria-roledescription": "formation map", "aria-label": "Formation map" });
    map.stage = C.el("div", { class: "stage" }, map.base, map.over);
    map.read = C.el("p", { class: "readout", "aria-live": "polite" });
    const save = (kind, label) => C.el("button", { type: "button", "data-save": kind, onclick: () => C.saveMap(map, kind) }, label);
    map.saves = C.saveMenu("Download this map", save("csv", "CSV"), save("json", "JSON"), save("svg", "SVG"), save("png", "PNG"));
    C.fill(figure, C.el("div", { class: "head-line" }, map.title, map.bar, map.saves), map.stage, map.read);
    C.mapInput(map);
    return map;
  };

  /** Rows of the map: heads in the chosen order, or layers with their largest head. */
  C.mapRows = function (run, scores) {
    const s = C.state();
    if (s.rows === "layers") {
      const layers = [...Array(run.n_layers).keys()];
      if (s.flip) layers.reverse();
      return layers.map((layer) => ({
        label: `L${layer}`, layer, head: null,
        heads: [...Array(run.n_heads).keys()].map((h) => layer * run.n_heads + h),
      }));
    }
    return C.orderedHeads().map((head) => ({ label: C.data.headName(run, head), layer: Math.floor(head / run.n_heads), head, heads: [head] }));
  };

  /** The value of a row at a column, with the head it came from. */
  C.cellOf = function (scores, row, column) {
    let best = null;
    for (const head of row.heads) {
      const value = scores.values[column * scores.nHeads + head];
      if (!Number.isNaN(value) && (best === null || Math.abs(value) > Math.abs(best.value))) best = { head, value };
    }
    return best || { head: row.heads[0], value: null };
  };

  /** Draws the map of `measure`; `labels`: whether the steps stand under it, as they do under the lowest. */
  C.drawMap = function (map, measure, labels = true) {
    const [s, run] = [C.state(), C.run()];
    const scores = C.data.scores(s.run, measure);
    const words = C.data.words(measure);
    const problem = scores ? null : C.data.problems.get(`scores/${s.run}/${measure}`);
    map.title.textContent = words.title;
    map.measure = measure;
    if (!scores) {
      map.read.textContent = problem ? `Cannot read these scores: ${problem}` : measure ? "Reading scores …" : "No heads were scored in this run.";
      return;
    }
    const axis = C.currentAxis();
    const frame = C.frame(map.stage.clientWidth);
    const rows = C.mapRows(run, scores);
    const height = C.viewHeights(rows.length).row;
    const range = C.data.range(s.run, measure);
    Object.assign(map, { axis, frame, rows, height, range, scores, labels, top: TOP, bottom: labels ? LABELLED : BARE, steps: scores.steps });
    C.colorBar(map.bar, range, words.unit, C.data.formationKnown(run, measure));
    if (!rows.length) {
      map.read.textContent = "No heads match the filter.";
    } else if (scores.steps.length === 1) map.read.textContent = `Measured at step ${C.number(scores.steps[0])} only.`;
    else if (/^(No heads|Reading|Measured at)/.test(map.read.textContent)) map.read.textContent = "";
    const key = JSON.stringify([s.run, measure, s.axis, s.from, s.to, s.rows, s.flip, s.sort, rows.map((r) => r.label), frame.width, height, labels, C.isDark(), C.generation, C.pins()]);
    C.once(map.base, key, () => paintBase(map, run, s));
    map.over.setAttribute("aria-label", `${words.title}: ${rows.length} rows, ${scores.steps.length} checkpoints. Arrow keys move between heads and steps; Enter shows the attention. The Heads tab has the numbers.`);
    paintCursor(map, run, s);
  };

  function paintBase(map, run, s) {
    const { axis, frame, rows, height, range, scores } = map;
    const total = TOP + rows.length * height + map.bottom;
    const context = C.sized(map.base, frame.width, total);
    map.stage.style.height = total + "px";
    context.font = `${labelSize(height)}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const columns = axis.cells(scores.steps).filter(([a, b]) => b > axis.low && a < axis.high);
    context.fillStyle = C.color("missing"); // where no checkpoint was measured
    context.fillRect(frame.left, TOP, frame.plot, rows.length * height);
    context.drawImage(cellPicture(map, columns), frame.left, TOP, frame.plot, rows.length * height);
    context.fillStyle = C.color("ink");
    labels(context, map, s);
    layerLines(context, map, s);
    ticks(context, map);
    const band = C.band(run, axis);
    if (band) outline(context, axis.x(band[0], frame.left, frame.plot), axis.x(band[1], frame.left, frame.plot), rows.length * height);
    formation(context, map, run);
    roleMarks(context, map, run);
  }

  const ROLE_COLORS = ["#0072b2", "#b07a00", "#d55e00", "#000000", "#56b4e9", "#cc79a7", "#8a5fbf", "#009e73", "#808080"];
  const [MARK, MOST_MARKS] = [4, 4]; // pixels of a mark with its gap; marks of a head that have room
  const lasts = (found) => !/fell/.test(found.state || "");
  C.roleColor = (i) => (ROLE_COLORS[i % ROLE_COLORS.length] === "#000000" ? C.color("ink") : ROLE_COLORS[i % ROLE_COLORS.length]);

  /** What a head is in the end, the strongest first: [{number of the kind, role, measure, and the head's facts}]. */
  C.rolesOf = function (run, head) {
    const found = (run.roles || []).flatMap(({ role, measure, heads }, kind) => heads.filter((one) => one.head === head).map((one) => ({ kind, role, measure, ...one, share: one.peak / Math.max(...heads.map((x) => x.peak)) })));
    return found.sort((a, b) => lasts(b) - lasts(a) || b.share - a.share);
  };

  /** At the right edge of a row a coloured mark for each kind of head that it is in the end; a head can be several things. */
  function roleMarks(context, map, run) {
    if (C.state().rows !== "heads") return;
    map.rows.forEach((row, r) => {
      const kinds = C.rolesOf(run, row.head).filter(lasts).slice(0, MOST_MARKS);
      kinds.forEach(({ kind }, i) => {
        context.fillStyle = C.roleColor(kind);
        context.fillRect(map.frame.width - (i + 1) * MARK, TOP + r * map.height, MARK - 1, Math.max(1, map.height - (map.height > 4 ? 2 : 0)));
      });
    });
  }

  /** What the colours of the marks mean, with how many heads of each kind there are. */
  C.drawRoleWords = function (place) {
    const run = C.run();
    const kinds = (run.roles || []).map(({ role, heads }, kind) => ({ role, kind, count: heads.filter(lasts).length })).filter(({ count }) => count);
    place.hidden = !kinds.length || C.state().rows !== "heads";
    C.once(place, JSON.stringify([C.state().run, C.generation, C.isDark()]), () =>
      C.fill(place, kinds.length ? C.el("span", {}, "Marks at the right edge, what a head is in the end:") : null,
        kinds.map(({ role, kind, count }) => C.el("span", { class: "role" }, C.el("span", { class: "swatch", style: `background:${C.roleColor(kind)}` }), `${role} (${count})`))));
  };

  const labelSize = (height) => Math.max(9, Math.min(11, height));

  /** Cells as a picture one pixel a plot column wide and one pixel a row high, so that 150 × 144 takes a millisecond. */
  function cellPicture(map, columns) {
    const { axis, frame, rows, range, scores } = map;
    const width = Math.round(frame.plot * 2);
    const picture = C.el("canvas", { width, height: Math.max(rows.length, 1) });
    const context = picture.getContext("2d");
    const image = context.createImageData(width, Math.max(rows.length, 1));
    const pixels = new Uint32Array(image.data.buffer);
    const colors = C.scaleOf(range).packed;
    const missing = C.packColor(C.color("missing"));
    const spans = columns.map(([a, b, i]) => [Math.max(0, Math.round(axis.x(a, 0, width))), Math.min(width, Math.round(axis.x(b, 0, width))), i]);
    rows.forEach((row, r) => {
      for (const [from, to, i] of spans) {
        const shade = C.shade(C.cellOf(scores, row, i).value, range);
        pixels.fill(shade < 0 ? missing : colors[shade], r * width + from, r * width + to);
      }
    });
    context.putImageData(image, 0, 0);
    map.base.getContext("2d").imageSmoothingEnabled = false;
    return picture;
  }

  function labels(context, map, s) {
    const { rows, height, frame } = map;
    context.textAlign = "right";
    const pins = C.pins();
    const layers = height < 8 && s.sort === "layer" && s.rows === "heads";
    let last = -Infinity;
    rows.forEach((row, r) => {
      let y = TOP + (r + 0.5) * height;
      let text = row.label;
      if (layers) {
        if (r && rows[r - 1].layer === row.layer) return;
        const count = rows.filter((x) => x.layer === row.layer).length;
        y = TOP + (r + count / 2) * height;
        text = `L${row.layer}`;
      }
      if (y - last < labelSize(height)) return;
      last = y;
      context.fillText((pins.includes(row.head) ? "● " : "") + text, frame.left - 6, y);
    });
  }

  function layerLines(context, map, s) {
    if (s.sort !== "layer" || s.rows !== "heads") return;
    context.fillStyle = map.height < 3 ? "rgba(255,255,255,0.35)" : "rgba(255,255,255,0.75)";
    map.rows.forEach((row, r) => {
      if (r && map.rows[r - 1].layer !== row.layer) context.fillRect(map.frame.left, TOP + r * map.height - 0.5, map.frame.plot, 1);
    });
  }

  function ticks(context, map) {
    const { axis, frame, rows, height } = map;
    const y = TOP + rows.length * height;
    context.fillStyle = C.color("soft");
    context.textAlign = "center";
    for (const [at, text] of axis.ticks(frame.plot < 420 ? 6 : 12)) {
      const x = axis.x(at, frame.left, frame.plot);
      if (x < frame.left - 1 || x > frame.left + frame.plot + 1) continue;
      context.fillRect(x - 0.5, y, 1, 4);
      if (map.labels) context.fillText(text, x, y + 11);
    }
    if (map.labels) context.fillText(axis.title, frame.left + frame.plot / 2, y + 26);
  }

  function outline(context, low, high, tall) {
    for (const [color, width, dash] of [["#ffffff", 3, []], ["#d55e00", 1.5, [5, 4]]]) {
      context.strokeStyle = color;
      context.lineWidth = width;
      context.setLineDash(dash);
      context.strokeRect(low, TOP, Math.max(high - low, 2), tall);
    }
    context.setLineDash([]);
  }

  /** A diamond at each formation step, and the step in words at the row's right end. */
  function formation(context, map, run) {
    const { axis, frame, rows, height } = map;
    context.textAlign = "left";
    let last = -Infinity;
    rows.forEach((row, r) => {
      const found = row.heads.map((h) => C.data.formation(run, map.measure, h)).filter((f) => f && f.step !== null).sort((a, b) => a.step - b.step)[0];
      if (!found) return;
      const y = TOP + (r + 0.5) * height;
      const x = axis.x(axis.position(found.step), frame.left, frame.plot);
      if (x >= frame.left && x <= frame.left + frame.plot) diamond(context, x, y, Math.max(3, Math.min(5, height / 2 + 1)));
      if (y - last < labelSize(height)) return;
      last = y;
      context.fillStyle = C.color("found");
      context.fillText(C.stepWord(found.step) + (/fell/.test(found.state || "") ? "↓" : ""), frame.left + frame.plot + 6, y);
    });
  }

  function diamond(context, x, y, size) {
    context.beginPath();
    context.moveTo(x, y - size);
    context.lineTo(x + size, y);
    context.lineTo(x, y + size);
    context.lineTo(x - size, y);
    context.closePath();
    context.fillStyle = "#d55e00";
    context.fill();
    context.strokeStyle = "#fff";
    context.lineWidth = 1.2;
    context.stroke();
  }

  /** The step cursor, the chosen row, and a rectangle being dragged. */
  function paintCursor(map, run, s) {
    const { axis, frame, rows, height } = map;
    const tall = rows.length * height;
    const context = C.sized(map.over, frame.width, TOP + tall + map.bottom);
    const x = axis.x(axis.position(s.step), frame.left, frame.plot);
    const inside = x >= frame.left && x <= frame.left + frame.plot;
    if (inside) {
      context.fillStyle = "#fff";
      context.fillRect(x - 1.5, TOP, 3, tall);
      context.fillStyle = "#111";
      context.fillRect(x - 0.5, TOP - 3, 1, tall + 6);
    }
    const at = rows.findIndex((row) => row.heads.includes(C.head()));
    if (at >= 0) {
      const tallRow = height < 8 ? height + 4 : height; // around a low row, not over it
      const y = TOP + (at + 0.5) * height - tallRow / 2;
      context.strokeStyle = "#fff";
      context.lineWidth = 3;
      context.strokeRect(frame.left + 0.5, y, frame.plot - 1, tallRow);
      context.strokeStyle = "#111";
      context.lineWidth = 1;
      context.strokeRect(frame.left + 0.5, y, frame.plot - 1, tallRow);
      context.fillStyle = C.color("ink");
      context.beginPath();
      context.moveTo(frame.left - 5, y + tallRow / 2 - 4);
      context.lineTo(frame.left + 1, y + tallRow / 2);
      context.lineTo(frame.left - 5, y + tallRow / 2 + 4);
      context.fill();
    }
    if (map.drag) {
      const [low, high] = [Math.min(map.drag.from, map.drag.to), Math.max(map.drag.from, map.drag.to)];
      context.fillStyle = "rgba(0,114,178,0.25)";
      context.fillRect(low, TOP, high - low, tall);
    }
  }
  C.paintMapCursor = (map) => map.scores && paintCursor(map, C.run(), C.state());
})(Copyscope);
