"use strict";
// Pictures for a paper: the map and one head's attention as SVG with title, labels and scale, always on white.
(function (C) {
  const OVER = 0.6; // pixels by which a cell reaches under the next one, or viewers show a seam between them
  const INK = "#1b1f24";
  const FOUND = "#b34700";
  const MARK = "#d55e00";
  const two = (v) => String(Math.round(v * 100) / 100);

  function sheet(width, height) {
    const svg = C.svg("svg", { xmlns: "http://www.w3.org/2000/svg", width: two(width), height: two(height), viewBox: `0 0 ${two(width)} ${two(height)}`, "font-family": "sans-serif", "font-size": 11, fill: INK });
    svg.append(C.svg("rect", { width: two(width), height: two(height), fill: "#ffffff" }));
    return svg;
  }
  const text = (x, y, words, more = {}) => C.svg("text", { x: two(x), y: two(y), ...more }, words);
  const rect = (x, y, width, height, more) => C.svg("rect", { x: two(x), y: two(y), width: two(Math.max(width, 0.1)), height: two(height), ...more });
  const written = (svg) => new XMLSerializer().serializeToString(svg);

  /** A colour scale standing upright, its ends written beside it. */
  function colorBar(svg, x, y, height, colors, low, high, title) {
    const step = height / colors.length;
    colors.forEach((color, i) => svg.append(rect(x, y + height - (i + 1) * step, 12, step + (i ? OVER : 0), { fill: color })));
    svg.append(text(x, y - 6, title, { "font-size": 10 }), text(x + 16, y + 8, C.precise(high), { "font-size": 10 }), text(x + 16, y + height, C.precise(low), { "font-size": 10 }));
  }

  /** The map as vectors, with the phase change, the lines between layers, formation steps and the colour scale. */
  C.mapSvg = function (map) {
    const { axis, frame, rows, range, scores } = map;
    const [run, words] = [C.run(), C.data.words(map.measure)];
    const height = Math.max(map.height, rows.length > 64 ? 4 : 12);
    const [top, tall] = [40, rows.length * height];
    const right = frame.left + frame.plot;
    const svg = sheet(right + 122, top + tall + 42);
    const x = (at) => Math.max(frame.left, Math.min(right, axis.x(at, frame.left, frame.plot)));
    svg.append(text(frame.left, 14, `${run.name}: ${words.title}`, { "font-weight": "bold", "font-size": 13 }));
    svg.append(rect(frame.left, top, frame.plot, tall, { fill: "#c0c0c0" }));
    const columns = axis.cells(scores.steps).filter(([a, b]) => b > axis.low && a < axis.high);
    const known = (run.formation || {})[map.measure];
    rows.forEach((row, r) => {
      const y = top + r * height;
      for (const [a, b, i] of columns) {
        const { value } = C.cellOf(scores, row, i);
        const end = Math.min(right, x(b) + OVER);
        svg.append(rect(x(a), y, end - x(a), height + (r < rows.length - 1 ? OVER : 0), { fill: C.css(value, range, "#c0c0c0") }));
      }
    });
    rows.forEach((row, r) => {
      const y = top + r * height;
      if (r && C.state().sort === "layer" && rows[r - 1].layer !== row.layer) svg.append(rect(frame.left, y - 0.5, frame.plot, 1, { fill: "#ffffff", "fill-opacity": 0.75, class: "layer" }));
      const ofLayer = rows.filter((other) => other.layer === row.layer).length;
      if (height >= 9) svg.append(text(frame.left - 6, y + height / 2 + 4, row.label, { "text-anchor": "end" }));
      else if (!r || rows[r - 1].layer !== row.layer) svg.append(text(frame.left - 6, y + (ofLayer * height) / 2 + 4, `L${row.layer}`, { "text-anchor": "end" }));
    });
    const band = C.band(run, axis);
    if (band) {
      const box = { x: two(x(band[0])), y: top, width: two(Math.max(x(band[1]) - x(band[0]), 2)), height: two(tall), fill: "none", class: "band" };
      svg.append(C.svg("rect", { ...box, stroke: "#ffffff", "stroke-width": 3 }), C.svg("rect", { ...box, stroke: MARK, "stroke-width": 1.5, "stroke-dasharray": "5 4" }));
      svg.append(text(right, 32, `phase change: ${C.ruleWords(run.copying.rule || "")}`, { "text-anchor": "end", fill: FOUND, "font-size": 10 }));
    }
    let last = -Infinity;
    rows.forEach((row, r) => {
      const found = known && row.heads.map((h) => C.data.formation(run, map.measure, h)).filter((f) => f && f.step !== null).sort((a, b) => a.step - b.step)[0];
      if (!found) return;
      const [at, cy] = [axis.position(found.step), top + (r + 0.5) * height];
      if (at >= axis.low && at <= axis.high) svg.append(C.svg("path", { d: `M${two(x(at))},${two(cy - 5)} l5,5 l-5,5 l-5,-5 Z`, fill: MARK, stroke: "#ffffff" }));
      if (cy - last < 10) return;
      last = cy;
      svg.append(text(right + 6, cy + 4, C.stepWord(found.step), { fill: FOUND }));
    });
    if (known) svg.append(text(right + 6, 32, "formed at", { fill: FOUND, "font-size": 10 }));
    for (const [at, label] of axis.ticks(10)) if (at >= axis.low && at <= axis.high) svg.append(rect(x(at) - 0.5, top + tall, 1, 4, { fill: INK }), text(x(at), top + tall + 15, label, { "text-anchor": "middle" }));
    svg.append(text(frame.left + frame.plot / 2, top + tall + 32, axis.title, { "text-anchor": "middle" }));
    const colors = [...Array(32).keys()].map((i) => `rgb(${C.scaleOf(range).rgb[Math.round((i / 31) * 255)].join(",")})`);
    colorBar(svg, right + 66, top, Math.min(tall, 140), colors, range.low, range.high, words.unit || (map.measure.includes(":") ? "effect" : "score"));
    return written(svg);
  };

  /** One head's attention as vectors: tokens, the masked triangle, expected targets, the colour scale. */
  C.attentionSvg = function (attention, head, name) {
    const [run, { tokens, targets }] = [C.run(), attention.prompt];
    const size = tokens.length;
    const cell = Math.max(4, Math.min(18, 560 / size));
    const font = Math.min(11, cell - 1);
    const labelled = font >= 6;
    const [left, top, side] = [labelled ? 96 : 34, labelled ? 116 : 40, size * cell];
    const svg = sheet(left + side + 76, top + side + 28);
    svg.append(text(8, 16, `${run.name}: ${name} at step ${C.number(attention.step)}`, { "font-weight": "bold", "font-size": 13 }));
    svg.append(rect(left, top, side, side, { fill: "#e8e8e8" }));
    for (let q = 0; q < size; q++)
      C.data.row(attention, head, q).forEach((value, k) => {
        const fill = `rgb(${C.attentionScale().rgb[Math.round(value * 255)].join(",")})`;
        svg.append(rect(left + k * cell, top + q * cell, cell + (k < q ? OVER : 0), cell + (q < size - 1 ? OVER : 0), { fill }));
      });
    // The lower edge of a row reaches under the next one; what shows beyond the diagonal is covered again.
    for (let q = 0; q < size - 1; q++) svg.append(rect(left + (q + 1) * cell, top + q * cell, side - (q + 1) * cell, cell, { fill: "#e8e8e8" }));
    targets.forEach((keys, q) => {
      for (const k of keys) svg.append(rect(left + k * cell + 0.5, top + q * cell + 0.5, cell - 1, cell - 1, { fill: "none", stroke: MARK, "stroke-width": 1.5, class: "target" }));
    });
    const most = Math.floor(88 / (font * 0.6));
    if (labelled)
      tokens.forEach((token, i) => {
        const words = C.shortText(C.tokenText(token), most);
        const middle = (i + 0.5) * cell;
        const look = { "font-family": "monospace", "font-size": two(font), direction: "ltr" };
        svg.append(text(left - 5, top + middle + font / 3, words, { ...look, "text-anchor": "end" }));
        svg.append(text(0, 0, words, { ...look, x: null, y: null, transform: `translate(${two(left + middle + font / 3)} ${top - 5}) rotate(-90)` }));
      });
    svg.append(text(left + side / 2, top + side + 18, "key", { "text-anchor": "middle" }));
    svg.append(text(0, 0, "query", { x: null, y: null, "text-anchor": "middle", transform: `translate(12 ${two(top + side / 2)}) rotate(-90)` }));
    const colors = [...Array(32).keys()].map((i) => `rgb(${C.attentionScale().rgb[Math.round((i / 31) * 255)].join(",")})`);
    colorBar(svg, left + side + 16, top + 8, Math.min(side - 8, 140), colors, 0, 1, "attention");
    return written(svg);
  };
})(Copyscope);
