"use strict";
// Line charts as SVG: panels under one another on one step axis, each with its title and its legend above it.
(function (C) {
  const LOOKS = [["#0072b2", "circle", ""], ["#d55e00", "diamond", "7 4"], ["#009e73", "square", "2 3"], ["#cc79a7", "cross", "7 3 2 3"], ["#b07a00", "triangle", "12 4"], ["#56b4e9", "circle", "12 3 3 3"]];
  const FEW = 80; // points that still get a mark each
  const MOST = 600; // points of a line
  const FONT = "system-ui, sans-serif";
  /** Colour, mark and dashes of the line number i of a panel. */
  C.look = (i) => LOOKS[i % LOOKS.length];
  C.lineColor = (i) => C.look(i)[0];

  const pen = document.createElement("canvas").getContext("2d");
  const widthOf = function (text, size, weight = 400) {
    pen.font = `${weight} ${size}px ${FONT}`;
    return pen.measureText(text).width;
  };
  C.textWidth = widthOf;
  /** Text cut off where it does not fit a width. */
  C.fitText = function (text, width, size, weight = 400) {
    let most = text.length;
    while (most > 2 && widthOf(C.shortText(text, most), size, weight) > width) most--;
    return C.shortText(text, most);
  };

  const around = (x, y, points) => "M" + points.map(([dx, dy]) => `${(x + dx).toFixed(1)},${(y + dy).toFixed(1)}`).join("L") + "Z";
  function mark(kind, x, y, r = 2.6) {
    if (kind === "circle") return `M${(x - r).toFixed(1)},${y.toFixed(1)}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`;
    if (kind === "square") return around(x, y, [[-r, -r], [r, -r], [r, r], [-r, r]]);
    if (kind === "triangle") return around(x, y, [[0, -1.3 * r], [1.2 * r, r], [-1.2 * r, r]]);
    if (kind === "cross") return around(x, y, [[-r, -r], [0, -0.4 * r], [r, -r], [0.4 * r, 0], [r, r], [0, 0.4 * r], [-r, r], [-0.4 * r, 0]]);
    return around(x, y, [[0, -1.4 * r], [1.4 * r, 0], [0, 1.4 * r], [-1.4 * r, 0]]);
  }

  /** Round numbers between two ends, about `most` of them. */
  function rounds(low, high, most) {
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const unit = [1, 2, 5, 10].map((f) => f * power).find((u) => u >= rough - 1e-12);
    const out = [];
    for (let k = Math.ceil(low / unit - 1e-9); k * unit <= high + 1e-9 * unit; k++) out.push(k * unit);
    return out;
  }
  const short = (v) => (Math.abs(v) >= 1000 ? C.stepLabel(Math.abs(v)) : String(Number(Math.abs(v).toPrecision(3))));
  const tickText = (v) => (v < 0 ? "−" : "") + short(v);

  /** At most `MOST` points a line: medians of even stretches of the axis. */
  function thin(line, axis) {
    const inside = line.steps.map((step, i) => [axis.position(step), i]).filter(([at, i]) => at >= axis.low && at <= axis.high && line.values[i] !== null);
    if (inside.length <= MOST) return line;
    const cells = new Map();
    for (const [at, i] of inside) {
      const cell = Math.floor(((at - axis.low) / (axis.high - axis.low)) * MOST);
      if (!cells.has(cell)) cells.set(cell, []);
      cells.get(cell).push(i);
    }
    const out = { ...line, steps: [], values: [], se: null };
    for (const indexes of [...cells.keys()].sort((a, b) => a - b).map((k) => cells.get(k))) {
      const values = indexes.map((i) => line.values[i]).sort((a, b) => a - b);
      out.steps.push(line.steps[indexes[indexes.length >> 1]]);
      out.values.push(values[values.length >> 1]);
    }
    return out;
  }

  /** The ends of a panel's values: those given, else what is seen in the steps shown. */
  function ends(panel, axis) {
    if (panel.low !== undefined) return [panel.low, panel.high];
    let [low, high] = [Infinity, -Infinity];
    for (const line of panel.lines)
      line.steps.forEach((step, i) => {
        const [at, v] = [axis.position(step), line.values[i]];
        if (v === null || v === undefined || at < axis.low || at > axis.high) return;
        low = Math.min(low, v);
        high = Math.max(high, v);
      });
    if (!(low <= high)) return [0, 1];
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - pad, high + pad];
  }

  /** Where title and legend of a panel go: {items: [{x, line}], lines}. The title and its legend share a line where they fit. */
  function legend(panel, named, frame, size) {
    const title = widthOf(panel.title, 12, 600) + 18;
    const widths = named.map((line) => widthOf(line.name, size) + 30);
    const total = widths.reduce((a, b) => a + b, 0);
    const items = [];
    if (title + total <= frame.plot) {
      let x = frame.left + frame.plot - total;
      for (const width of widths) {
        items.push({ x, row: 0 });
        x += width;
      }
      return { items, rows: 1 };
    }
    let [x, row] = [frame.left, 1];
    for (const width of widths) {
      if (x > frame.left && x + width > frame.left + frame.plot + 40) [x, row] = [frame.left, row + 1];
      items.push({ x, row });
      x += width;
    }
    return { items, rows: row + 1 };
  }

  /** A chart as an <svg> with `tops`, the upper edges of its panels, and `inner`, their height.
   *
   * panels: [{title, lines: [{name, steps, values, se, look, silent}], low, high}], low and high optional; look: as of C.look, by default that
   * of the line's number; silent: not in the legend; axis and frame as for maps; height of a panel;
   * band: two positions or null; marks: [{at, dash}]; labels: whether the axis gets its labels and title. */
  C.lineChart = function ({ panels, axis, frame, height, band = null, marks = [], labels = true, name }) {
    const size = 11;
    const [ink, soft, grid, paper] = ["ink", "soft", "line", "paper"].map(C.color);
    const looks = panels.map((panel) => panel.lines.map((line, i) => line.look || C.look(i)));
    const named = panels.map((panel, p) => panel.lines.map((line, i) => ({ ...line, look: looks[p][i] })).filter((line) => !line.silent));
    const plans = panels.map((panel, p) => legend(panel, named[p], frame, size));
    const tops = [];
    let y = 0;
    for (const plan of plans) {
      tops.push(y + 4 + plan.rows * 15);
      y += 4 + plan.rows * 15 + height + 4;
    }
    const tall = y + (labels ? 32 : 4);
    const svg = C.svg("svg", { width: frame.width, height: tall, viewBox: `0 0 ${frame.width} ${tall}`, "font-family": FONT, "font-size": size, role: "img", "aria-label": name });
    svg.append(C.svg("rect", { width: frame.width, height: tall, fill: paper }));
    const x = (at) => axis.x(at, frame.left, frame.plot);
    const ticks = axis.ticks(frame.plot < 420 ? 5 : 12);
    panels.forEach((panel, p) => {
      const [top, bottom] = [tops[p], tops[p] + height];
      const [low, high] = ends(panel, axis);
      const py = (v) => bottom - ((v - low) / (high - low)) * height;
      if (band) svg.append(C.svg("rect", { x: x(band[0]).toFixed(1), width: Math.max(1, x(band[1]) - x(band[0])).toFixed(1), y: top, height, fill: "#d55e00", "fill-opacity": 0.08 }));
      for (const [at] of ticks) svg.append(C.svg("line", { x1: x(at).toFixed(1), x2: x(at).toFixed(1), y1: top, y2: bottom, stroke: grid }));
      for (const v of rounds(low, high, Math.max(2, height / 26)))
        svg.append(
          C.svg("line", { x1: frame.left, x2: frame.left + frame.plot, y1: py(v).toFixed(1), y2: py(v).toFixed(1), stroke: grid }),
          C.svg("text", { x: frame.left - 6, y: (py(v) + 4).toFixed(1), "text-anchor": "end", fill: soft, "font-size": size - 1 }, tickText(v))
        );
      // A nested <svg> cuts off what lies outside it, without an id that other charts could clash with.
      const inside = C.svg("svg", { x: frame.left - 4, y: top - 3, width: frame.plot + 8, height: height + 6, viewBox: `${frame.left - 4} ${top - 3} ${frame.plot + 8} ${height + 6}` });
      panel.lines.forEach((line, i) => draw(inside, thin(line, axis), looks[p][i], axis, x, py));
      svg.append(inside);
      if (band)
        for (const at of band) svg.append(C.svg("line", { x1: x(at).toFixed(1), x2: x(at).toFixed(1), y1: top, y2: bottom, stroke: "#d55e00", "stroke-dasharray": "5 4" }));
      for (const { at, panel: which } of marks)
        if (which === p && at >= axis.low && at <= axis.high) svg.append(C.svg("line", { x1: x(at).toFixed(1), x2: x(at).toFixed(1), y1: top, y2: bottom, stroke: ink, "stroke-dasharray": "1 3", "stroke-width": 1.5 }));
      const first = top - 4 - (plans[p].rows - 1) * 15;
      svg.append(C.svg("text", { x: frame.left, y: first, "font-size": 12, "font-weight": 600, fill: ink }, C.fitText(panel.title, frame.width - frame.left, 12, 600)));
      plans[p].items.forEach((item, i) => {
        const [color, kind, dash] = named[p][i].look;
        const at = first + item.row * 15;
        svg.append(
          C.svg("line", { x1: item.x, x2: item.x + 18, y1: at - 4, y2: at - 4, stroke: color, "stroke-width": 1.8, "stroke-dasharray": dash || null }),
          C.svg("path", { d: mark(kind, item.x + 9, at - 4), fill: color }),
          C.svg("text", { x: item.x + 22, y: at, fill: soft }, named[p][i].name)
        );
      });
    });
    if (labels) {
      const bottom = y - 4;
      for (const [at, text] of ticks) if (x(at) > frame.left - 2 && x(at) < frame.left + frame.plot + 2) svg.append(C.svg("text", { x: x(at).toFixed(1), y: bottom + 13, "text-anchor": "middle", fill: soft }, text));
      svg.append(C.svg("text", { x: frame.left + frame.plot / 2, y: bottom + 28, "text-anchor": "middle", fill: soft }, axis.title));
    }
    return { svg, tops, height, tall, end: y - 4 };
  };

  function draw(place, line, [color, kind, dash], axis, x, py) {
    const at = line.steps.map((step) => x(axis.position(step)));
    const there = line.values.map((v) => v !== null && v !== undefined && Number.isFinite(v));
    const path = (value, from = "M") => {
      let [out, pen] = ["", false];
      at.forEach((px, i) => {
        if (!there[i]) return (pen = false);
        out += `${pen ? "L" : from}${px.toFixed(1)},${py(value(i)).toFixed(1)}`;
        return (pen = true);
      });
      return out;
    };
    if (line.se && line.se.some((e) => e > 0) && there.every(Boolean)) {
      const side = (sign) => at.map((px, i) => `${px.toFixed(1)},${py(line.values[i] + sign * 1.96 * (line.se[i] || 0)).toFixed(1)}`);
      place.append(C.svg("polygon", { points: [...side(1), ...side(-1).reverse()].join(" "), fill: color, "fill-opacity": 0.15 }));
    }
    const shown = at.filter((px, i) => there[i] && line.steps[i] !== null && axis.position(line.steps[i]) >= axis.low && axis.position(line.steps[i]) <= axis.high).length;
    place.append(C.svg("path", { d: path((i) => line.values[i]), fill: "none", stroke: color, "stroke-width": shown > FEW ? 1.3 : 1.8, "stroke-dasharray": (shown > FEW ? "" : dash) || null, "stroke-linejoin": "round" }));
    if (shown <= FEW) place.append(C.svg("path", { d: at.map((px, i) => (there[i] ? mark(kind, px, py(line.values[i])) : "")).join(""), fill: color }));
  }

  /** A figure's pointer on a step axis: `hover(x, event)`, `leave()`, `click(x, event)`, and dragging sideways, `drag(low, high, done)`,
   * in pixels of the element. `frameOf` gives the frame, or null while nothing is drawn. */
  C.onAxis = function (element, frameOf, { hover, leave, click, drag }) {
    let from = null;
    let moved = false;
    const xOf = (event) => event.clientX - element.getBoundingClientRect().left;
    const inside = (frame, x) => frame && x >= frame.left && x <= frame.left + frame.plot;
    const within = (frame, x) => Math.max(frame.left, Math.min(frame.left + frame.plot, x));
    element.addEventListener("pointermove", (event) => {
      const [frame, x] = [frameOf(), xOf(event)];
      if (from !== null && frame) {
        if (Math.abs(x - from) > 8) moved = true;
        drag(Math.min(from, within(frame, x)), Math.max(from, within(frame, x)), false);
      } else hover(x, event);
    });
    element.addEventListener("pointerleave", () => from === null && leave());
    element.addEventListener("pointerdown", (event) => {
      moved = false;
      if (event.button !== 0 || event.pointerType !== "mouse" || !inside(frameOf(), xOf(event))) return;
      from = xOf(event);
      try {
        element.setPointerCapture(event.pointerId);
      } catch {
        // a made-up event has no pointer to capture
      }
    });
    element.addEventListener("pointerup", (event) => {
      const start = from;
      from = null;
      if (start === null) return;
      const x = within(frameOf(), xOf(event));
      drag(Math.min(start, x), Math.max(start, x), true, moved);
    });
    element.addEventListener("pointercancel", () => {
      from = null;
      leave();
    });
    element.addEventListener("click", (event) => {
      if (!moved && inside(frameOf(), xOf(event))) click(xOf(event), event);
      moved = false;
    });
    element.addEventListener("dblclick", () => C.go({ from: null, to: null }));
  };
})(Copyscope);
