"use strict";
// One head's attention on the current prompt: the matrix (or the lines in its place), with the chosen query's row and the expected targets outlined.
(function (C) {
  const hover = { query: null };

  /** The query looked at: the one under the pointer, else the chosen one. */
  C.query = () => (hover.query === null ? C.state().query : hover.query);
  C.hoverQuery = function (query) {
    if (hover.query === query) return;
    hover.query = query;
    C.redraw();
  };
  /** What the Attention view shows: the chosen head, or several pooled into one. {attention, head, name}, or undefined. */
  C.attentionShown = function () {
    const [attention, run, { pool }] = [C.attentionNow(), C.run(), C.state()];
    const head = C.head();
    if (!attention || !pool) return attention && { attention, head, name: C.data.headName(run, head) };
    const layer = Math.floor(head / run.n_heads);
    const heads = [...Array(pool === "layer" ? run.n_heads : run.n_layers * run.n_heads).keys()].map((h) => (pool === "layer" ? layer * run.n_heads + h : h));
    return { attention: C.data.pooled(attention, pool === "max" ? "max" : "mean", heads), head: 0, name: C.poolName(run) };
  };
  C.poolName = function (run) {
    const { pool } = C.state();
    if (!pool) return C.data.headName(run, C.head());
    return pool === "layer" ? `Mean of layer ${Math.floor(C.head() / run.n_heads)}` : pool === "mean" ? "Mean of all heads" : "Largest of all heads";
  };
  C.attentionNow = (step = C.state().step) => C.data.attention(C.state().run, C.state().prompt, step);

  C.makeMatrix = function (place, most) {
    const matrix = { place, most, base: C.el("canvas", { class: "pixels", "aria-hidden": "true" }) };
    matrix.over = C.el("canvas", { class: "over", tabindex: "0", role: "application", "aria-roledescription": "attention matrix", "aria-label": "Attention" });
    matrix.stage = C.el("div", { class: "stage matrix" }, matrix.base, matrix.over);
    matrix.words = C.el("p", { class: "note" });
    matrix.lines = most > 300 ? C.makeLines() : null;
    C.fill(place, matrix.stage, matrix.lines && matrix.lines.holder, matrix.words);
    const queryAt = (event) => {
      if (!matrix.size) return null;
      const box = matrix.over.getBoundingClientRect();
      const row = Math.floor(((event.clientY - box.top - matrix.top) / matrix.size) * matrix.nTokens);
      const x = event.clientX - box.left;
      return row >= 0 && row < matrix.nTokens && x >= 0 && x <= matrix.left + matrix.size ? row : null;
    };
    matrix.over.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse") C.hoverQuery(queryAt(event));
      C.tip(cellWords(matrix, event), event.clientX, event.clientY);
    });
    matrix.over.addEventListener("pointerleave", () => {
      C.hoverQuery(null);
      C.tip(null);
    });
    matrix.over.addEventListener("click", (event) => {
      const query = queryAt(event);
      if (query !== null) C.go({ query });
    });
    matrix.over.addEventListener("keydown", (event) => C.queryKeys(event, "ArrowUp", "ArrowDown"));
    return matrix;
  };

  /** What the cell under the pointer says: its tokens and its value. */
  function cellWords(matrix, event) {
    const shown = matrix.most > 300 ? C.attentionShown() : C.attentionNow() && { attention: C.attentionNow(), head: C.head() };
    if (!shown || !matrix.size) return null;
    const { attention, head } = shown;
    const box = matrix.over.getBoundingClientRect();
    const [query, key] = [event.clientY - box.top - matrix.top, event.clientX - box.left - matrix.left].map((v) => Math.floor((v / matrix.size) * matrix.nTokens));
    if (query < 0 || key < 0 || query >= attention.nTokens || key >= attention.nTokens) return null;
    const { tokens, targets } = attention.prompt;
    const named = (i) => `“${C.tokenText(tokens[i])}” (${i})`;
    if (key > query) return [`${named(query)} cannot see ${named(key)}`, "masked: it comes later"];
    const value = C.data.row(attention, head, query)[key];
    return [`${named(query)} → ${named(key)}: ${C.number(value, 2)}`, ...(targets[query].includes(key) ? ["expected induction target"] : [])];
  }

  /** Keys that move the query; true if one did. */
  C.queryKeys = function (event, back, on) {
    const prompt = C.data.prompt(C.state().run, C.state().prompt);
    if (!prompt || event.ctrlKey || event.metaKey || event.altKey) return false;
    const last = prompt.tokens.length - 1;
    const query = { [back]: C.state().query - 1, [on]: C.state().query + 1, Home: 0, End: last }[event.key];
    if (query === undefined) return false;
    event.preventDefault();
    event.stopPropagation();
    C.go({ query: Math.max(0, Math.min(last, query)) });
    return true;
  };

  C.drawMatrix = function (matrix) {
    const [s, run] = [C.state(), C.run()];
    const shown = matrix.most > 300 ? C.attentionShown() : C.attentionNow() && { attention: C.attentionNow(), head: C.head(), name: C.data.headName(run, C.head()) };
    const attention = shown && shown.attention;
    const problem = attention ? null : C.data.attentionProblem(s.run, s.prompt, s.step);
    matrix.place.classList.toggle("waiting", !attention && !problem);
    if (problem) {
      matrix.words.textContent = problem;
      matrix.stage.hidden = true;
      if (matrix.lines) matrix.lines.holder.hidden = true;
      return;
    }
    if (!attention) {
      // The last picture stays until the next one is here; the first one may wait for torch and the model.
      if (matrix.size === undefined) matrix.stage.hidden = true;
      if (C.data.source.live && !C.data.modelIsHere) matrix.words.textContent = "Loading the model …";
      return;
    }
    const asLines = matrix.lines !== null && s.picture === "lines";
    matrix.stage.hidden = asLines;
    if (matrix.lines) matrix.lines.holder.hidden = !asLines;
    if (asLines) {
      matrix.words.textContent = C.drawLines(matrix.lines, shown, Math.min(matrix.place.clientWidth, matrix.most));
      return;
    }
    const { head, name } = shown;
    const { prompt, nTokens } = attention;
    const labelled = nTokens <= 64 && matrix.most > 300;
    const left = labelled ? 84 : 0;
    const top = labelled ? 74 : 0;
    const size = Math.max(80, Math.min(matrix.place.clientWidth - left - 2, matrix.most));
    Object.assign(matrix, { left, top, size, nTokens });
    C.once(matrix.base, [s.run, s.prompt, attention.step, name, C.isDark(), C.generation].join("/"), () => C.paintAttention(matrix.base, attention, head));
    Object.assign(matrix.base.style, { left: left + "px", top: top + "px", width: size + "px", height: size + "px" });
    matrix.stage.style.height = top + size + "px";
    const key = JSON.stringify([s.run, s.prompt, nTokens, size, left, C.query(), C.isDark(), C.generation]);
    C.once(matrix.over, key, () => overlay(matrix, prompt, labelled));
    const query = C.query();
    matrix.over.setAttribute("aria-label", `Attention of ${name} at step ${attention.step}, query token ${query}. Up and down move the query.`);
    matrix.words.textContent = `Rows: query; columns: key; ${C.isDark() ? "dark 0 to light blue" : "white 0 to dark blue"} 1; grey: masked (future). Orange squares: where a perfect induction head attends.`;
  };

  /** The text, or as much of it as is no wider than `room` pixels in the font of `context`, with "…". */
  function fitting(context, text, room) {
    let most = text.length;
    while (most > 1 && context.measureText(C.shortText(text, most)).width > room) most--;
    return C.shortText(text, most);
  }

  function overlay(matrix, prompt, labelled) {
    const { left, top, size, nTokens } = matrix;
    const context = C.sized(matrix.over, left + size + 2, top + size + (labelled ? 4 : 0)); // the last row's label may be taller than the row
    const cell = size / nTokens;
    const query = C.query();
    context.strokeStyle = "#d55e00";
    context.lineWidth = Math.max(1, Math.min(2, cell / 5));
    prompt.targets.forEach((keys, q) => {
      for (const k of keys) context.strokeRect(left + k * cell + 0.5, top + q * cell + 0.5, Math.max(cell - 1, 2), Math.max(cell - 1, 2));
    });
    for (const [color, width] of [["#fff", 3.5], ["#111", 1.5]]) {
      context.strokeStyle = color;
      context.lineWidth = width;
      context.strokeRect(left + 1, top + Math.min(query * cell, size - cell - 1), Math.max((query + 1) * cell - 1, 3), Math.max(cell, 3));
    }
    if (!labelled) return;
    context.direction = "ltr";
    context.textBaseline = "middle";
    const font = Math.max(8, Math.min(12, cell - 1));
    const every = Math.ceil((font + 1) / cell); // on a telephone there is no room for all; the query's is always there
    prompt.tokens.forEach((token, i) => {
      if (i !== query && (i % every || Math.abs(i - query) < every)) return;
      context.font = `${i === query ? "700 " : ""}${font}px ui-monospace, monospace`;
      const text = fitting(context, C.tokenText(token), Math.min(left, top) - 7);
      context.fillStyle = i === query ? C.color("ink") : C.color("soft");
      context.textAlign = "right";
      context.fillText(text, left - 5, top + (i + 0.5) * cell);
      context.save();
      context.translate(left + (i + 0.5) * cell, top - 5);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(text, 0, 0);
      context.restore();
    });
  }
})(Copyscope);
