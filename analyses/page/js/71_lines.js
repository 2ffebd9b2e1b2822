"use strict";
// One head's attention as lines: the queries on the left, the keys on the right, and between them a line a pair, the more opaque the stronger.
(function (C) {
  const ALL_LINES = 64; // tokens; of a longer prompt only the looked-at token's lines are drawn
  const LEAST = 0.01; // attention that no line shows
  const MARK = "#d55e00";
  let hoveredKey = null; // the key under the pointer: then the lines that lead to it are the strong ones
  const hoverKey = (key) => {
    if (key === hoveredKey) return;
    hoveredKey = key;
    C.redraw();
  };

  function layout(nTokens, width) {
    const row = nTokens <= 24 ? 20 : nTokens <= 40 ? 16 : 13;
    const column = Math.round(Math.min(120, width * 0.28));
    return { width, column, row, height: nTokens * row + 2, font: Math.min(12, row - 2) };
  }

  /** The strong pairs [query, key, value]: of the hovered key, else of the query looked at. */
  function strongPairs(shown, query) {
    const row = (q) => C.data.row(shown.attention, shown.head, q);
    if (hoveredKey === null) return row(query).map((value, key) => [query, key, value]);
    return [...Array(shown.attention.nTokens - hoveredKey).keys()].map((i) => [hoveredKey + i, hoveredKey, row(hoveredKey + i)[hoveredKey]]);
  }

  function line(place, [query, key, value], more) {
    const y = (i) => (i + 0.5) * place.row + 1;
    const [from, to] = [place.column, place.width - place.column];
    return C.svg("line", { x1: from, y1: y(query), x2: to, y2: y(key), stroke: C.color("accent"), "stroke-opacity": value.toFixed(3), ...more });
  }

  /** All pairs of the head, faint; drawn once a head and step. */
  function faintLines(place, { attention, head }) {
    const group = C.svg("g", { class: "faint", opacity: 0.3 });
    if (attention.nTokens > ALL_LINES) return group;
    for (let query = 0; query < attention.nTokens; query++)
      C.data.row(attention, head, query).forEach((value, key) => {
        if (value >= LEAST) group.append(line(place, [query, key, value], {}));
      });
    return group;
  }

  /** The strong lines, and both columns of tokens, those at the other end shaded by the attention. */
  function strongPart(place, shown, query) {
    const { tokens, targets } = shown.attention.prompt;
    const pairs = strongPairs(shown, query);
    const group = C.svg("g", { class: "strong" });
    for (const pair of pairs) if (pair[2] >= LEAST) group.append(line(place, pair, { "stroke-width": 2.2, "data-pair": `${pair[0]} ${pair[1]}` }));
    const far = new Map(pairs.map(([q, k, value]) => [hoveredKey === null ? k : q, value]));
    const most = Math.floor((place.column - 8) / (place.font * 0.61));
    tokens.forEach((token, i) => {
      for (const [side, isKey] of [["query", false], ["key", true]]) {
        const chosen = isKey ? i === hoveredKey : hoveredKey === null && i === query;
        const shade = isKey === (hoveredKey === null) && far.has(i) ? C.attentionScale().rgb[Math.round(far.get(i) * 255)] : null;
        const expected = isKey && hoveredKey === null && targets[query].includes(i);
        const x = isKey ? place.width - place.column : 0;
        const look = chosen ? { stroke: C.color("ink"), "stroke-width": 1.5 } : expected ? { stroke: MARK, "stroke-width": 2, "stroke-dasharray": "4 2" } : {};
        group.append(C.svg("rect", { x: x + 1, y: i * place.row + 1.5, width: place.column - 2, height: place.row - 1, rx: 2, fill: shade ? `rgb(${shade.join(",")})` : "none", ...look }));
        const ink = shade ? C.inkOnRgb(shade) : C.color(chosen ? "ink" : "soft");
        const text = { x: isKey ? x + 5 : place.column - 5, y: (i + 0.5) * place.row + 1 + place.font / 3, "text-anchor": isKey ? "start" : "end", fill: ink, "font-weight": chosen ? 700 : null };
        group.append(C.svg("text", { ...text, "font-size": place.font, "font-family": "ui-monospace, monospace", direction: "ltr", "unicode-bidi": "isolate", "data-side": side }, C.shortText(C.tokenText(token), most)));
      }
    });
    return group;
  }

  C.makeLines = function () {
    const lines = { faint: null, place: null, shown: null };
    lines.svg = C.svg("svg", { tabindex: 0, role: "application", "aria-roledescription": "attention lines", "aria-label": "Attention" });
    lines.holder = C.el("div", { class: "attention-lines", hidden: true }, lines.svg);
    const at = (event) => {
      const box = lines.svg.getBoundingClientRect();
      const [x, i] = [event.clientX - box.left, Math.floor((event.clientY - box.top - 1) / lines.place.row)];
      const inside = i >= 0 && i < lines.shown.attention.nTokens;
      return { query: inside && x <= lines.place.column ? i : null, key: inside && x >= lines.place.width - lines.place.column ? i : null };
    };
    lines.svg.addEventListener("pointermove", (event) => {
      const { query, key } = at(event);
      if (event.pointerType === "mouse") {
        C.hoverQuery(query);
        hoverKey(key);
      }
      C.tip(tokenWords(lines.shown, query, key), event.clientX, event.clientY);
    });
    lines.svg.addEventListener("pointerleave", () => {
      C.hoverQuery(null);
      hoverKey(null);
      C.tip(null);
    });
    lines.svg.addEventListener("click", (event) => {
      const { query } = at(event);
      if (query !== null) C.go({ query });
    });
    lines.svg.addEventListener("keydown", (event) => C.queryKeys(event, "ArrowUp", "ArrowDown"));
    return lines;
  };

  function tokenWords({ attention, head }, query, key) {
    const { tokens } = attention.prompt;
    const named = (i) => `“${C.tokenText(tokens[i])}” (${i})`;
    if (query !== null) return [named(query)];
    if (key === null) return null;
    const locked = C.state().query;
    return [named(key), key > locked ? `${named(locked)} cannot see it` : `from ${named(locked)}: ${C.number(C.data.row(attention, head, locked)[key], 2)}`];
  }

  /** Draws what the Attention view shows into the lines; hovering changes the strong part only. */
  C.drawLines = function (lines, shown, width) {
    const [s, query] = [C.state(), C.query()];
    const { attention, name } = shown;
    if (hoveredKey !== null && hoveredKey >= attention.nTokens) hoveredKey = null;
    const place = layout(attention.nTokens, width);
    Object.assign(lines, { place, shown });
    const key = [s.run, s.prompt, attention.step, name, width, C.isDark(), C.generation].join("/");
    C.once(lines.svg, key, () => {
      for (const [field, value] of Object.entries({ width, height: place.height, viewBox: `0 0 ${width} ${place.height}` })) lines.svg.setAttribute(field, value);
      C.fill(lines.svg, faintLines(place, shown), C.svg("g", {}));
    });
    C.once(lines.holder, [key, query, hoveredKey].join("/"), () => lines.svg.lastChild.replaceWith(strongPart(place, shown, query)));
    lines.svg.setAttribute("aria-label", `Attention of ${name} at step ${attention.step} as lines, query token ${query}. Up and down move the query.`);
    const long = attention.nTokens > ALL_LINES ? ` Beyond ${ALL_LINES} tokens only one token's lines are drawn.` : "";
    return `Left: query; right: key; the more opaque a line, the more attention (none below ${LEAST}). Click a query to lock it; point at a key to see who attends to it.${long}`;
  };

  /** The same as a picture of its own, with a title. */
  C.linesSvg = function ({ attention, head, name }) {
    const shown = { attention, head, name };
    const place = layout(attention.nTokens, 520);
    const [top, height] = [48, place.height + 56];
    const svg = C.svg("svg", { xmlns: "http://www.w3.org/2000/svg", width: place.width + 16, height, viewBox: `0 0 ${place.width + 16} ${height}`, "font-family": "sans-serif", "font-size": 11, fill: C.color("ink") });
    const { query } = C.state();
    svg.append(
      C.svg("rect", { width: place.width + 16, height, fill: C.color("paper") }),
      C.svg("text", { x: 8, y: 18, "font-weight": "bold", "font-size": 13 }, `${C.run().name}: ${name} at step ${C.number(attention.step)}`),
      C.svg("text", { x: 8 + place.column - 5, y: 40, "text-anchor": "end" }, "query"),
      C.svg("text", { x: 8 + place.width - place.column + 5, y: 40 }, "key"),
      C.svg("g", { transform: `translate(8 ${top})` }, faintLines(place, shown), strongPart(place, shown, query))
    );
    return new XMLSerializer().serializeToString(svg);
  };
})(Copyscope);
