"use strict";
// A head's weights over the prompt's tokens, on demand: the OV circuit (what it writes) and the QK circuit (what it seeks).
(function (C) {
  let wanted = null; // the head, step and prompt whose weights were asked for

  const here = () => `${C.state().run}/${C.state().prompt}/${C.state().step}/${C.data.headName(C.run(), C.head())}`;

  C.setUpWeights = () =>
    C.byId("weights-show").addEventListener("click", () => {
      wanted = C.state().prompt;
      C.redraw();
    });

  C.drawWeights = function () {
    const [s, run] = [C.state(), C.run()];
    const prompt = C.data.prompt(s.run, s.prompt);
    const part = C.byId("weights-part");
    part.hidden = !(C.data.source.live && prompt);
    if (part.hidden) return;
    const name = C.data.headName(run, C.head());
    C.byId("weights-show").textContent = `Show the weights of ${name} over this prompt's tokens`;
    C.byId("weights-show").hidden = wanted === s.prompt;
    const place = C.byId("weights");
    place.hidden = wanted !== s.prompt;
    if (place.hidden) return;
    const block = `matrices/${here()}`;
    const found = C.data.json(block);
    C.byId("weights-words").textContent = found ? `${name} at step ${C.number(s.step)}. OV: by how much attending to the row's token raises the column's logit; a copying head has a red diagonal. QK: how much the row's token seeks the column's, positions aside. Embeddings alone: what earlier layers add is not in it.` : C.data.problems.get(block) || "Computing …";
    if (!found) return;
    C.numbersOf.weights = { tokens: found.tokens, ov: found.ov, qk: found.qk };
    C.once(place, block + C.isDark() + place.clientWidth, () => C.fill(place, picture("OV: from (row) to (column)", found.tokens, found.ov, place), picture("QK: query (row), key (column)", found.tokens, found.qk, place)));
  };

  function picture(title, tokens, values, place) {
    const size = tokens.length;
    const half = place.clientWidth < 700 ? place.clientWidth : place.clientWidth / 2 - 12;
    const left = 70;
    const cell = Math.max(3, Math.min(20, (half - left - 4) / size));
    const far = Math.max(...values.flat().map(Math.abs), 1e-9);
    const range = { signed: true, low: -far, high: far };
    const side = size * cell;
    const svg = C.svg("svg", { width: left + side + 2, height: left + side + 2, role: "img", "aria-label": title, "font-family": "monospace", "font-size": Math.max(6, Math.min(11, cell - 1)).toFixed(1), fill: C.color("soft") });
    values.forEach((row, r) =>
      row.forEach((value, c) => {
        const rect = C.svg("rect", { x: (left + c * cell).toFixed(1), y: (left + r * cell).toFixed(1), width: (cell + 0.5).toFixed(1), height: (cell + 0.5).toFixed(1), fill: C.css(value, range, C.color("missing")) });
        rect.append(C.svg("title", {}, `“${C.tokenText(tokens[r])}”, “${C.tokenText(tokens[c])}”: ${C.signed(value, 2)}`));
        svg.append(rect);
      })
    );
    if (cell >= 7)
      tokens.forEach((token, i) => {
        const words = C.shortText(C.tokenText(token), 9);
        const middle = left + (i + 0.5) * cell;
        svg.append(C.svg("text", { x: left - 4, y: (middle + 3).toFixed(1), "text-anchor": "end", direction: "ltr" }, words));
        svg.append(C.svg("text", { transform: `translate(${(middle + 3).toFixed(1)} ${left - 4}) rotate(-90)`, direction: "ltr" }, words));
      });
    const bar = C.el("div", { class: "colorbar" });
    C.colorBar(bar, range, "", false);
    return C.el("figure", {}, C.el("figcaption", {}, title), bar, C.el("div", { class: "scroll" }, svg));
  }
})(Copyscope);
