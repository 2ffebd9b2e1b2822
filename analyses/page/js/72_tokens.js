"use strict";
// The prompt as a row of tokens: the query's sources shaded, the expected induction targets outlined.
(function (C) {
  C.makeTokens = function (place) {
    const list = C.el("div", { class: "tokens", role: "group", "aria-label": "Tokens of the prompt; arrow keys move the query" });
    list.addEventListener("keydown", (event) => {
      if (C.queryKeys(event, "ArrowLeft", "ArrowRight")) list.children[C.state().query].focus();
    });
    list.addEventListener("pointerleave", () => C.hoverQuery(null));
    const view = { place, list, words: C.el("p", { class: "note", "aria-live": "polite" }) };
    C.fill(place, list, view.words);
    return view;
  };

  C.drawTokens = function (view) {
    const [s, run] = [C.state(), C.run()];
    const prompt = C.data.prompt(s.run, s.prompt);
    if (!prompt) return C.fill(view.list);
    C.once(view.list, [s.run, s.prompt, prompt.tokens.length, C.generation].join("/"), () => build(view, prompt));
    const shown = s.view === "attention" ? C.attentionShown() : C.attentionNow() && { attention: C.attentionNow(), head: C.head(), name: C.data.headName(run, C.head()) };
    const query = C.query();
    const row = shown ? C.data.row(shown.attention, shown.head, query) : null;
    const targets = prompt.targets[query] || [];
    prompt.tokens.forEach((token, i) => {
      const chip = view.list.children[i];
      const share = row && i < row.length ? row[i] : null;
      const rgb = share === null ? null : C.attentionScale().rgb[Math.round(share * 255)];
      chip.style.background = rgb === null ? "" : `rgb(${rgb.join(",")})`;
      chip.style.color = rgb === null ? "" : C.inkOnRgb(rgb);
      chip.classList.toggle("query", i === query);
      chip.classList.toggle("target", targets.includes(i));
      chip.classList.toggle("later", i > query);
      chip.tabIndex = i === s.query ? 0 : -1;
      const words = [`token ${i}, ${C.tokenText(token)}`];
      if (i === query) words.push("the query");
      if (share !== null) words.push(`attention ${C.number(share)}`);
      if (targets.includes(i)) words.push("expected target");
      chip.setAttribute("aria-label", words.join(", "));
      chip.title = words.join(", ");
    });
    view.words.textContent = sentence(shown, prompt, row, query, targets);
    return undefined;
  };

  function build(view, prompt) {
    C.fill(
      view.list,
      prompt.tokens.map((token, i) => {
        const chip = C.el("button", { type: "button", class: "token" }, C.el("bdi", {}, C.tokenText(token)));
        chip.addEventListener("click", () => C.go({ query: i }));
        chip.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && C.hoverQuery(i));
        return chip;
      })
    );
  }

  function sentence(shown, prompt, row, query, targets) {
    if (!row) return "";
    const where = `${shown.name} at step ${C.number(shown.attention.step)}, from “${C.tokenText(prompt.tokens[query])}” (token ${query})`;
    if (!targets.length) return `${where}: no earlier copy, so an induction head has no target.`;
    const sum = targets.reduce((total, k) => total + (row[k] || 0), 0);
    const names = targets.map((k) => `“${C.tokenText(prompt.tokens[k])}” (token ${k})`).join(", ");
    return `${where}: ${Math.round(sum * 100)} % of its attention goes to the expected ${targets.length > 1 ? "targets" : "target"} ${names}.`;
  }

  /** The chosen query's largest sources and its targets, as a table. */
  C.drawSources = function (place) {
    const s = C.state();
    const prompt = C.data.prompt(s.run, s.prompt);
    const seen = C.attentionShown();
    if (!prompt || !seen) return;
    const query = C.query();
    const row = C.data.row(seen.attention, seen.head, query);
    const targets = prompt.targets[query] || [];
    const order = row.map((_, i) => i).sort((x, y) => row[y] - row[x]);
    const shown = [...new Set([...order.slice(0, 5), ...targets])].sort((x, y) => row[y] - row[x]);
    const rows = shown.map((k) => [k, C.tokenText(prompt.tokens[k]), row[k], targets.includes(k) ? "expected target" : k === query ? "itself" : ""]);
    const run = C.run();
    const whose = [run.name, s.prompt, seen.attention.step, ...C.shownHead(run), query, prompt.tokens[query]];
    const tidy = () => ({
      columns: ["run", "prompt", "step", "layer", "head", "query", "query_token", "key", "key_token", "attention", "expected_target"],
      rows: shown.map((k) => [...whose, k, prompt.tokens[k], C.meant(row[k], null, 3), targets.includes(k) ? 1 : 0]),
    });
    C.table(place, { title: "Tokens the query attends to most", columns: ["token", "text", "attention", ""], rows, name: "sources", tidy });
  };
})(Copyscope);
