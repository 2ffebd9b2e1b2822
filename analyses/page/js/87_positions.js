"use strict";
// Loss on held-out text by position in the context, over training: what comes late in a text gets easier once the model
// copies (Olsson et al. 2022).
(function (C) {
  const ROW = 9; // pixels a stretch of positions

  C.drawPositions = function (holder) {
    const [s, run] = [C.state(), C.run()];
    const found = run.positions;
    holder.hidden = !found;
    if (!found || !holder.open) return;
    const place = C.byId("positions-figure");
    const axis = C.currentAxis();
    const frame = C.frame(place.clientWidth);
    C.once(place, JSON.stringify([s.run, axis.kind, axis.low, axis.high, frame.width, C.isDark(), C.generation]), () => C.fill(place, picture(run, found, axis, frame)));
  };

  const stretch = (edges, r) => (edges[r + 1] - edges[r] === 1 ? String(edges[r]) : `${edges[r]}–${edges[r + 1] - 1}`);

  function picture(run, { edges, steps, values }, axis, frame) {
    const tall = values.length * ROW;
    const all = values.flat().filter((v) => v !== null);
    const range = { signed: false, low: Math.min(...all), high: Math.max(...all) };
    const [soft, missing] = [C.color("soft"), C.color("missing")];
    const svg = C.svg("svg", { width: frame.width, height: tall + 40, viewBox: `0 0 ${frame.width} ${tall + 40}`, role: "img", "font-size": 11, "aria-label": "Loss by position in the context over training" });
    const x = (at) => Math.max(frame.left, Math.min(frame.left + frame.plot, axis.x(at, frame.left, frame.plot)));
    svg.append(C.svg("rect", { x: frame.left, y: 0, width: frame.plot, height: tall, fill: missing }));
    const columns = axis.cells(steps).filter(([a, b]) => b > axis.low && a < axis.high);
    values.forEach((row, r) => {
      for (const [a, b, i] of columns) {
        const cell = C.svg("rect", { x: x(a).toFixed(1), y: r * ROW, width: Math.max(0.1, x(b) - x(a) + 0.6).toFixed(1), height: ROW + (r < values.length - 1 ? 0.6 : 0), fill: C.css(row[i], range, missing) });
        cell.append(C.svg("title", {}, `position ${stretch(edges, r)}, step ${C.number(steps[i])}: ${C.number(row[i], 2)} nats`));
        svg.append(cell);
      }
    });
    values.forEach((_, r) => {
      if (r % 3 === 0) svg.append(C.svg("text", { x: frame.left - 6, y: r * ROW + ROW / 2 + 4, "text-anchor": "end", fill: soft, "font-size": 10 }, stretch(edges, r)));
    });
    const band = C.band(run, axis);
    if (band) svg.append(C.svg("rect", { x: x(band[0]), y: 0, width: Math.max(2, x(band[1]) - x(band[0])), height: tall, fill: "none", stroke: "#d55e00", "stroke-width": 1.5, "stroke-dasharray": "5 4" }));
    for (const [at, text] of axis.ticks(frame.plot < 420 ? 6 : 12)) if (at >= axis.low && at <= axis.high) svg.append(C.svg("text", { x: x(at), y: tall + 14, "text-anchor": "middle", fill: soft }, text));
    svg.append(C.svg("text", { x: frame.left + frame.plot / 2, y: tall + 32, "text-anchor": "middle", fill: soft }, axis.title));
    const bar = C.el("div", { class: "colorbar" });
    C.colorBar(bar, range, "nats", false);
    return [C.el("figcaption", { class: "note" }, "Rows: position in the context; colour: loss on held-out text."), bar, svg];
  }
})(Copyscope);
